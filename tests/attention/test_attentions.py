"""Every form of attention against a float64 oracle, the plain form, and in what must hold for all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.attention import IMPLEMENTATIONS, attend, blocked, masks
from lm.attention.masks import Causal, Full, causal, window
from lm.errors import InputError
from tests.attention.strategies import MASKS

SOFTCAPS = [None, 2.0]
# cuDNN and what needs a TPU or a GPU run elsewhere.
FORMS = [name for name in IMPLEMENTATIONS if name in ('xla', 'blocked', 'sparse')]
IN_BLOCKS = [name for name in FORMS if name != 'xla']
KINDS = {
    str(mask): mask
    for mask in (
        causal,
        masks.full,
        causal & window(3),
        causal & (window(2) | masks.strided(3)),
        causal & masks.fixed(3, 1),
        masks.window(2) | masks.global_tokens(2),
        causal & masks.random_blocks(1, 0, 2),
        causal & ~masks.strided(2),
    )
}
# Two documents and padding, and in the second row three; T = 300 is three blocks, the last not full.
T = 300
SEGMENTS = np.repeat([[1, 2, 0], [1, 2, 3]], 100, axis=1)
# The first row's last hundred queries see nothing at all.
BLIND = np.concatenate([SEGMENTS[:, :200], [[7] * 100, [3] * 100]], axis=1)
LONG = {
    str(mask): mask
    for mask in (
        causal,
        masks.full,
        causal & window(70),
        causal & (window(20) | masks.strided(16)),
        causal & masks.fixed(32, 3),
        masks.bigbird(30, 10, 1),
        causal & masks.bigbird(30, 10, 1),
        masks.longformer(30, 4),
        causal & ~masks.strided(3) & ~window(5),
    )
}


def oracle(
    query, key, value, mask, segments=None, positions=None, bias=None, softcap=None, slopes=None
):
    """One query and head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, length, heads = query.shape[:3]
    source = key.shape[1]
    out = np.zeros_like(query)
    bias = np.broadcast_to(0.0 if bias is None else bias, (batch, heads, length, source))
    q_places, k_places = positions or (
        np.broadcast_to(np.arange(length), (batch, length)),
        np.broadcast_to(np.arange(source), (batch, source)),
    )
    for b, t, h in np.ndindex(query.shape[:3]):
        g = h * key.shape[2] // heads
        logits = key[b, :, g] @ query[b, t, h] / np.sqrt(query.shape[-1])
        logits = softcap * np.tanh(logits / softcap) if softcap else logits
        logits = logits + bias[b, h, t]
        if slopes is not None:
            logits = logits - slopes[h] * np.abs(q_places[b, t] - k_places[b])
        seen = np.asarray(mask.allows(q_places[b, t], k_places[b])) & (k_places[b] >= 0)
        if segments is not None:
            seen = seen & (segments[0][b, t] == segments[1][b])
        if seen.any():
            weights = np.exp(logits - logits[seen].max()) * seen
            out[b, t, h] = weights / weights.sum() @ value[b, :, g]
    return out


def inputs(seed=0, batch=2, length=7, source=7, heads=4, groups=2, width=6):
    rng = np.random.default_rng(seed)
    shapes = [(length, heads), (source, groups), (source, groups)]
    return [rng.normal(size=(batch, *s, width)).astype(np.float32) for s in shapes]


@pytest.mark.parametrize(
    ('kind', 'groups', 'softcap'),
    [
        *((kind, 2, None) for kind in KINDS),
        *(('causal', groups, softcap) for groups in (1, 4) for softcap in SOFTCAPS),
    ],
)
@pytest.mark.parametrize('form', FORMS)
class TestOracle:
    @pytest.mark.first_quick
    def test_plain(self, form, kind, groups, softcap):
        arrays = inputs(groups=groups)
        got = attend(*arrays, KINDS[kind], softcap=softcap, implementation=form)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, oracle(*arrays, KINDS[kind], softcap=softcap), atol=2e-6)

    @pytest.mark.first_quick
    def test_more_keys_segments_and_distances(self, form, kind, groups, softcap):
        arrays = inputs(groups=groups, length=3)
        options = {
            'segments': (np.array([[1, 1, 2], [1, 2, 2]]), np.array([[1, 1, 1, 2, 2, 0, 0]] * 2)),
            'slopes': (0.5, 0.25, 0.125, 0.0),
            'softcap': softcap,
        }
        got = attend(*arrays, KINDS[kind], implementation=form, **options)
        np.testing.assert_allclose(got, oracle(*arrays, KINDS[kind], **options), atol=2e-6)


@pytest.mark.parametrize('softcap', SOFTCAPS)
@pytest.mark.parametrize('kind', KINDS)
def test_segments_bias_and_positions(kind, softcap):
    arrays = inputs(length=3)
    options = {
        'segments': (np.array([[1, 1, 2], [1, 2, 2]]), np.array([[1, 1, 1, 2, 2, 0, 0]] * 2)),
        'positions': (
            np.array([[1, 2, 4], [0, 3, 4]]),
            np.array([[0, 1, 2, 3, 4, 5, 6], [3, 1, 0, 4, -1, 2, -1]]),
        ),
        'bias': np.random.default_rng(1).normal(size=(1, 4, 3, 7)).astype(np.float32),
        'slopes': (0.5, 0.25, 0.125, 0.0),
        'softcap': softcap,
    }
    got = attend(*arrays, KINDS[kind], **options)
    np.testing.assert_allclose(got, oracle(*arrays, KINDS[kind], **options), atol=2e-6)


@functools.cache
def pulled(form, mask, groups, segments, softcap=None, slopes=None, length=T):
    """Returns the result and gradients of a loss; `segments` is one of the names below."""
    segments = {'none': None, 'packed': (SEGMENTS, SEGMENTS), 'blind': (BLIND, SEGMENTS)}[segments]
    arrays = [
        jax.random.normal(jax.random.key(i), (2, length, heads, 8))
        for i, heads in enumerate((4, groups, groups, 4))
    ]

    def loss(query, key, value):
        out = attend(
            query,
            key,
            value,
            mask,
            segments=segments,
            softcap=softcap,
            slopes=slopes,
            implementation=form,
        )
        return jnp.sum(arrays[3] * out), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays[:3])
    return (out, *grads)


@pytest.mark.first_quick
@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        *((kind, {'groups': 4, 'segments': 'none'}) for kind in LONG),
        *((kind, {'groups': 2, 'segments': 'packed'}) for kind in LONG),
        (
            'causal',
            {'groups': 1, 'segments': 'none', 'softcap': 1.5, 'slopes': (1.0, 0.5, 0.25, 0.1)},
        ),
        ('causal', {'groups': 4, 'segments': 'blind', 'softcap': 1.5}),
        ('full', {'groups': 4, 'segments': 'blind'}),
        (
            'causal & window(70)',
            {'groups': 2, 'segments': 'blind', 'slopes': (1.0, 0.5, 0.25, 0.1)},
        ),
        (str(causal & masks.fixed(32, 3)), {'groups': 2, 'segments': 'blind', 'softcap': 1.5}),
    ],
)
@pytest.mark.parametrize('form', IN_BLOCKS)
def test_blocks_are_the_plain_form_in_value_and_gradient(form, kind, options):
    (out, *grads), (want, *wanted) = (pulled(f, LONG[kind], **options) for f in (form, 'xla'))
    np.testing.assert_allclose(out, want, atol=2e-6)
    for a, b in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=12)
@given(MASKS, st.sampled_from([1, 64, 129, 200]))
@pytest.mark.parametrize('form', IN_BLOCKS)
def test_random_masks_are_the_plain_form_in_value_and_gradient(form, mask, length):
    (out, *grads), (want, *wanted) = (
        pulled(f, mask, 2, 'none', length=length) for f in (form, 'xla')
    )
    np.testing.assert_allclose(out, want, atol=2e-6)
    for a, b in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.first_quick
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    ('kind', 'softcap'),
    [*((kind, None) for kind, mask in KINDS.items() if mask.is_causal), ('causal', 2.0)],
)
def test_causal_gradients_are_exactly_zero(form, kind, softcap):
    query, key, value = inputs(batch=1)

    @jax.jit
    def jacobians(key, value):
        def run(key, value):
            out = attend(query, key, value, KINDS[kind], softcap=softcap, implementation=form)
            return jnp.sum(out, axis=(0, 2, 3))  # [T]

        return jax.jacobian(run, (0, 1))(key, value)  # [T, B, S, G, K] each

    seen = KINDS[kind].allows(np.arange(7)[:, None], np.arange(7))
    alone = seen.sum(axis=1) == 1  # A softmax over one key does not change.
    for name, rows in zip(('key', 'value'), jacobians(key, value), strict=True):
        matrix = np.abs(rows).sum(axis=(1, 3, 4))  # [T, S]
        assert (matrix[~seen] == 0).all()
        assert (matrix[seen & ~(alone[:, None] & (name == 'key'))] > 0).all()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('softcap', SOFTCAPS)
class TestRelations:
    @pytest.mark.first_quick
    @pytest.mark.parametrize('kind', ['causal', 'full', str(causal & window(3))])
    def test_two_segments_are_two_calls(self, form, softcap, kind):
        arrays = inputs()
        segments = np.array([[1, 1, 1, 2, 2, 2, 2]] * 2)
        options = {'softcap': softcap, 'implementation': form}
        together = attend(*arrays, KINDS[kind], segments=(segments, segments), **options)
        alone = [
            attend(*(x[:, part] for x in arrays), KINDS[kind], **options)
            for part in (slice(0, 3), slice(3, 7))
        ]
        np.testing.assert_allclose(together, np.concatenate(alone, axis=1), atol=1e-6)

    @pytest.mark.first_quick
    def test_rows_that_see_nothing_are_zero_with_finite_gradients(self, form, softcap):
        arrays = inputs()
        segments = np.array([[1, 1, 3, 2, 2, 2, 2]] * 2), np.array([[1, 1, 1, 2, 2, 2, 2]] * 2)

        def total(query, key, value):
            out = attend(
                query, key, value, Full(), segments=segments, softcap=softcap, implementation=form
            )
            return jnp.sum(out**2), out

        grads, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*map(jnp.asarray, arrays))
        assert (np.asarray(out[:, 2]) == 0).all()
        assert np.abs(out[:, 1]).min() > 0
        assert all(np.isfinite(g).all() for g in grads)

    def test_bfloat16_in_and_out(self, form, softcap):
        arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs()]
        got = attend(*arrays, Causal(), softcap=softcap, implementation=form)
        assert got.dtype == jnp.bfloat16
        want = oracle(*(x.astype(jnp.float32) for x in arrays), Causal(), softcap=softcap)
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)


@pytest.mark.parametrize('form', FORMS)
def test_prefixes_are_seen_by_all(form):
    arrays = inputs()
    in_prefix = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1, 0]], bool)
    segments = np.array([[1] * 7, [1, 1, 1, 1, 2, 2, 2]])
    got = attend(
        *arrays,
        causal | masks.prefix,
        segments=(segments, segments),
        in_prefix=in_prefix,
        implementation=form,
    )
    for row in range(2):
        places = np.arange(7)
        seen = (places[None] <= places[:, None]) | in_prefix[row]
        seen &= segments[row][:, None] == segments[row]
        bias = np.where(seen, 0.0, -1e9)[None, None]
        want = oracle(*(x[row : row + 1] for x in arrays), Full(), bias=bias)
        np.testing.assert_allclose(got[row : row + 1], want, atol=2e-6)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_masks_of_heads(groups):
    arrays = inputs(groups=groups)
    parts = causal, causal & window(2)
    got = attend(*arrays, masks.heads(*parts), slopes=(0.5, 0.25, 0.125, 0.0))
    for i, part in enumerate(parts):
        want = oracle(*arrays, part, slopes=(0.5, 0.25, 0.125, 0.0))
        heads = slice(2 * i, 2 * i + 2)
        np.testing.assert_allclose(got[:, :, heads], want[:, :, heads], atol=2e-6)
    with pytest.raises(InputError, match='3 masks, which do not divide the 4 heads'):
        attend(*arrays, masks.heads(causal, causal, causal))


@pytest.mark.parametrize('form', IN_BLOCKS)
def test_sixteen_bits_are_as_near_to_float32_as_the_plain_form(form):
    weights = jax.random.normal(jax.random.key(3), (2, T, 4, 8))
    arrays = [jax.random.normal(jax.random.key(i), (2, T, 4, 8)) for i in range(3)]
    arrays = [x.astype(jnp.bfloat16) for x in arrays]

    def gradients(implementation, dtype):
        def loss(*inputs):
            out = attend(*inputs, causal & window(200), implementation=implementation)
            return jnp.sum(weights * out)

        inputs = [x.astype(dtype) for x in arrays]
        return [g.astype(jnp.float32) for g in jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)]

    exact = gradients('xla', jnp.float32)
    for ours, plain, want in zip(
        gradients(form, jnp.bfloat16), gradients('xla', jnp.bfloat16), exact, strict=True
    ):
        assert jnp.linalg.norm(ours - want) < 1.2 * jnp.linalg.norm(plain - want)
        assert jnp.linalg.norm(ours - want) < 0.02 * jnp.linalg.norm(want)


@pytest.mark.slow
@pytest.mark.parametrize(
    'mask',
    [
        causal & window(256),
        causal & masks.bigbird(256, 64, 2),
        masks.sparse_transformer_strided(64),
        masks.sparse_transformer_fixed(64, 1),
    ],
    ids=str,
)
def test_memory_grows_as_the_row_does(mask):
    """With T times its doubling: an array of all pairs would grow by 4."""

    def temporary(length):
        array = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

        def loss(*arrays):
            return jnp.sum(attend(*arrays, mask, implementation='sparse'))

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(array, array, array).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8192) <= 2.2 * temporary(4096)


def test_softcap_bounds_what_one_key_can_win():
    """With logits between -c and c, no weight is below that of the extreme logits."""
    query, key = np.zeros((1, 1, 1, 2), np.float32), np.zeros((1, 2, 1, 2), np.float32)
    query[..., 0], key[0, 0, 0, 0] = 1e3, 1e3
    value = np.array([1.0, 0.0], np.float32).reshape(1, 2, 1, 1) * np.ones(2, np.float32)
    got = attend(query, key, value, Full(), softcap=1.0)
    np.testing.assert_allclose(got[0, 0, 0, 0], np.e / (np.e + 1), rtol=1e-6)


def test_blocks_leave_out_keys_that_none_of_their_queries_sees():
    blocks = blocked._blocks(T, T, Causal())
    assert [(r.start, r.stop) for r, _ in blocks] == [(0, 128), (128, 256), (256, 300)]
    assert [(k.start, k.stop) for _, k in blocks] == [(0, 128), (0, 256), (0, 300)]
    assert len(blocked._blocks(10_000, 1, Causal())) <= 16
