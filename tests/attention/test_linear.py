"""Linear attention in chunks against recurrences of one token at a time, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lm.attention import dense, parse, parse_pattern
from lm.attention import linear as kinds
from lm.attention.linear import KINDS, GatedDelta, GatedLinear, Linear, Performer
from lm.attention.masks import causal, full
from lm.errors import InputError

CAUSAL = (Linear(), Performer(12), GatedLinear(), GatedDelta())
ALL = (*CAUSAL, Linear(causal=0), Performer(12, causal=0))
causal_kinds = pytest.mark.parametrize('kind', CAUSAL, ids=str)
all_kinds = pytest.mark.parametrize('kind', ALL, ids=str)

B, T, H, G, K, V = 2, 37, 4, 2, 6, 5
# Documents between padding, and across chunks of 16.
PACKED = np.array(
    [
        [1] * 10 + [2] * 20 + [0] * 7,
        [0] * 2 + [3] * 10 + [0] * 3 + [3] * 5 + [1] + [2] * 16,
    ],
    np.int32,
)


def draw(kind, length=T, seed=0, width=K):
    """Returns queries, keys, values and gates; keys of the delta rule have length 1."""
    rng = np.random.default_rng(seed)
    query, key, value = (
        rng.normal(size=(B, length, *size)) for size in ((H, width), (G, width), (G, V))
    )
    arrays = [query, key, value]
    match kind:
        case GatedLinear():
            arrays += [-np.abs(rng.normal(size=key.shape))]
        case GatedDelta():
            arrays[1] = key / np.linalg.norm(key, axis=-1, keepdims=True)
            arrays += [-np.abs(rng.normal(size=key.shape[:3])), rng.uniform(size=key.shape[:3])]
    return [x.astype(np.float32) for x in arrays]


def run(kind, *arrays, **options):
    match kind:
        case Linear() | Performer():
            return kinds.linear(*arrays, kind, **options)
        case GatedLinear():
            return kinds.gated_linear(*arrays, **options)
    return kinds.gated_delta(*arrays, **options)


def weights_of(kind, query, key):
    """Returns `f(q) f(k)` of all pairs, `[B, H, T, T]`, by their definition."""
    if isinstance(kind, Linear):
        query, key = (jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0))) for x in (query, key))
    else:
        w = jnp.asarray(kinds.directions(kind.features, K, kind.seed), query.dtype)
        query, key = (x / K**0.25 for x in (query, key))
        query, key = (
            jnp.exp(x @ w.T - jnp.sum(x**2, axis=-1, keepdims=True) / 2) for x in (query, key)
        )
    return jnp.einsum('bthm,bshm->bhts', query, key)


def oracle(kind, query, key, value, *gates, segments=None):
    """One token at a time; of pairs, for the kinds that weigh them."""
    key, value, *gates = (jnp.repeat(x, H // G, axis=2) for x in (key, value, *gates))
    length = query.shape[1]
    segments = np.ones((B, length), np.int32) if segments is None else segments
    if isinstance(kind, Linear | Performer):
        seen = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None]
        seen &= np.tri(length, dtype=bool) if kind.causal else True
        weights = jnp.where(seen[:, None], weights_of(kind, query, key), 0)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights /= jnp.where(total == 0, 1, total)
        return jnp.einsum('bhts,bshv->bthv', weights, value)

    def step(carry, token):
        state, last = carry
        query, k, v, segment, decay, *beta = token
        real = (segment > 0)[:, None, None, None]
        state = jnp.where(real & (segment != last)[:, None, None, None], 0, state)
        decay = jnp.exp(decay)
        new = (decay[..., None] if decay.ndim == 3 else decay[..., None, None]) * state
        if beta:
            v = beta[0][..., None] * (v - jnp.einsum('bhkv,bhk->bhv', new, k))
        state = jnp.where(real, new + k[..., None] * v[..., None, :], state)
        out = jnp.einsum('bhk,bhkv->bhv', query, state) / np.sqrt(query.shape[-1])
        return (state, jnp.where(segment > 0, segment, last)), out

    first = jnp.zeros((B, H, *key.shape[3:], *value.shape[3:]), key.dtype)
    tokens = [jnp.swapaxes(x, 0, 1) for x in (query, key, value, segments, *gates)]
    _, out = jax.lax.scan(step, (first, segments[:, 0]), tokens)
    return jnp.swapaxes(out, 0, 1)


def pulled(function, arrays, cotangent):
    """Returns the result and gradients of all arrays."""

    @jax.jit
    def pull(arrays, cotangent):
        out, back = jax.vjp(lambda *arrays: function(*arrays), *arrays)
        return out, back(cotangent)

    return pull(arrays, cotangent)


@pytest.mark.parametrize(
    'segments',
    [pytest.param(None, id='one', marks=pytest.mark.slow), pytest.param(PACKED, id='packed')],
)
@all_kinds
def test_values_and_gradients(kind, segments):
    """In chunks of 16, the last of them not full, with two heads of queries for each of the keys."""
    arrays = draw(kind)
    cotangent = np.random.default_rng(1).normal(size=(B, T, H, V)).astype(np.float32)
    if segments is not None:
        cotangent *= (segments > 0)[:, :, None, None]
    got, got_grads = pulled(
        lambda *x: run(kind, *x, segments=segments, chunk=16)[0], arrays, cotangent
    )
    assert got.dtype == np.float32
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in (*arrays, cotangent)]
        want, want_grads = pulled(
            functools.partial(oracle, kind, segments=segments), wide[:-1], wide[-1]
        )
    real = slice(None) if segments is None else segments > 0
    np.testing.assert_allclose(got[real], want[real], atol=1e-5)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.slow
@causal_kinds
def test_gradients_of_later_tokens_are_exactly_zero(kind):
    """And of tokens of other segments; all others are not."""
    length, segments = 20, np.array([[1] * 11 + [2] * 9] * B)

    @jax.jit
    def row(t, arrays):
        """The influence of each token on token t, in each array: [T] each."""

        def total(*arrays):
            out = run(kind, *arrays, segments=segments, chunk=8)[0]
            return jnp.sum(jnp.sin(out[:, t]))

        grads = jax.grad(total, argnums=tuple(range(1, len(arrays))))(*arrays)
        return [jnp.sum(jnp.abs(x), axis=(0, *range(2, x.ndim))) for x in grads]

    def influence(arrays):
        return [
            np.stack(rows) for rows in zip(*(row(t, arrays) for t in range(length)), strict=True)
        ]

    seen = np.tri(length, dtype=bool) & (segments[0][:, None] == segments[0])
    keys, values, *gates = influence(draw(kind, length))
    for matrix in (keys, values, *gates):
        assert (matrix[~seen] == 0).all()
    assert (values[seen] > 0).all()
    # One key alone has all the weight, whatever it is.
    assert (keys[seen & ~np.eye(length, dtype=bool)] > 0).all()


def test_both_directions_see_all_of_their_segment():
    """In chunks, and no token of another segment."""
    segments = np.array([[1] * 11 + [2] * 9] * B)
    query, key, value = draw(Linear(), 20)

    def sums(value):
        out = kinds.linear(query, key, value, Linear(causal=0), segments=segments, chunk=8)[0]
        return jnp.sum(out, axis=(0, 2, 3))

    matrix = jnp.sum(jnp.abs(jax.jit(jax.jacrev(sums))(value)), axis=(1, 3, 4))
    np.testing.assert_array_equal(matrix > 0, segments[0][:, None] == segments[0])


@pytest.mark.slow
@all_kinds
def test_two_segments_are_two_calls(kind):
    arrays = draw(kind, 24)
    segments = np.array([[4] * 13 + [2] * 11] * B)
    go = jax.jit(functools.partial(run, kind, chunk=8))
    together, _ = go(*arrays, segments=segments)
    alone = [go(*(x[:, part] for x in arrays))[0] for part in (slice(13), slice(13, 24))]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), atol=2e-6)


@pytest.mark.first_quick
@all_kinds
def test_what_is_in_the_padding_does_not_matter(kind):
    """Not a bit of it: for what comes out for other tokens, and for the state."""
    go = jax.jit(functools.partial(run, kind, segments=PACKED, chunk=16))
    first, second = (
        [np.where(PACKED.reshape(B, T, *[1] * (x.ndim - 2)) > 0, x, y) for x, y in pairs]
        for pairs in (
            zip(draw(kind), draw(kind, seed=1), strict=True),
            zip(draw(kind), draw(kind, seed=2), strict=True),
        )
    )
    (out, state), (other_out, other_state) = go(*first), go(*second)
    assert (np.asarray(first[0]) != second[0]).any()
    np.testing.assert_array_equal(out[PACKED > 0], other_out[PACKED > 0])
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


@pytest.mark.slow
@all_kinds
def test_the_size_of_chunks_changes_nothing(kind):
    arrays = draw(kind)
    want, *others = (
        jax.jit(functools.partial(run, kind, chunk=chunk))(*arrays)[0] for chunk in (64, 16, 2)
    )
    for got in others:
        np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.slow
@causal_kinds
def test_pieces_are_the_whole(kind):
    """Pieces of several tokens and of one, with padding at their ends and without."""
    arrays = draw(kind)
    want, want_state = jax.jit(functools.partial(run, kind, chunk=8))(*arrays)
    go = jax.jit(functools.partial(run, kind, chunk=8))
    starts, ends, sizes, outs, state = (0, 1, 12, 13), (1, 12, 13, T), (1, 12, 3, 24), [], None
    for start, end, size in zip(starts, ends, sizes, strict=True):
        piece = [x[:, start : start + size] for x in arrays]  # with tokens of the next as padding
        segments = np.broadcast_to(np.arange(size) < end - start, (B, size)).astype(np.int32)
        out, state = go(*piece, segments=segments, state=state)
        outs.append(out[:, : end - start])
    np.testing.assert_allclose(np.concatenate(outs, axis=1), want, atol=5e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, want_state)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [GatedLinear(), GatedDelta()], ids=str)
def test_finite_differences(kind):
    """Of everything, gates and the first state too, in float64."""
    with jax.enable_x64(True):
        arrays = [x[:1, :12].astype(np.float64) for x in draw(kind, width=4)]
        state = np.random.default_rng(2).normal(size=(1, G, 4, V))
        segments = np.array([[1] * 7 + [2] * 4 + [0]])

        @jax.jit
        def both(*arrays):
            *arrays, state = arrays
            out, last = run(kind, *arrays, segments=segments, state={'state': state}, chunk=8)
            return out * (segments > 0)[:, :, None, None], last

        check_grads(both, (*arrays, state), order=1, modes=['rev'], eps=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('causality', [0, 1])
def test_the_performer_nears_softmax_attention(causality):
    """Its mean error falls about with the root of the features: 16 times as many, a quarter."""
    query, key, value = draw(Performer(), 24)
    arrays = query / 2, key / 2, value
    want = dense.attend(
        *arrays[:2],
        jnp.pad(arrays[2], ((0, 0),) * 3 + ((0, K - V),)),
        causal if causality else full,
    )[..., :V]
    errors = [
        np.mean(
            [
                np.abs(run(Performer(features, seed, causality), *arrays)[0] - want).mean()
                for seed in range(2)
            ]
        )
        for features in (16, 256, 4096)
    ]
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]
    assert errors[2] < 0.02


def test_directions_are_orthogonal_and_of_the_length_of_gaussian_vectors():
    w = kinds.directions(64 * 40, 64, 3)
    first = w[:64] / np.linalg.norm(w[:64], axis=1, keepdims=True)
    np.testing.assert_allclose(first @ first.T, np.eye(64), atol=1e-5)
    np.testing.assert_allclose(np.mean(np.sum(w**2, axis=1)), 64, rtol=0.02)
    np.testing.assert_array_equal(w, kinds.directions.__wrapped__(64 * 40, 64, 3))
    assert (w != kinds.directions(64 * 40, 64, 4)).all()


@pytest.mark.first_quick
@all_kinds
def test_extremes_stay_finite_and_exact(kind):
    """Decays to nothing at once, keys that repeat, and weights of 1e40 to 1."""
    query, key, value, *gates = draw(kind)
    if gates:
        gates[0][:, ::5] = -300.0
        gates[0][:, 1::5] = 0.0
        key[:, 5:] = key[:, 5:6]
        if len(gates) > 1:
            gates[1][:, 3:] = 1.0
    else:
        query, key = 6 * query, 6 * key
    arrays = [query, key, value, *gates]
    got, grads = pulled(lambda *x: run(kind, *x, chunk=16)[0], arrays, np.ones((B, T, H, V), 'f'))
    with jax.enable_x64(True):
        want = oracle(kind, *(np.asarray(x, np.float64) for x in arrays))
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    assert all(np.isfinite(x).all() for x in grads)


@all_kinds
def test_bfloat16_in_and_out(kind):
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(kind)]
    got, state = jax.jit(functools.partial(run, kind, chunk=16))(*arrays)
    assert got.dtype == jnp.bfloat16
    want, _ = jax.jit(functools.partial(run, kind, chunk=16))(
        *(x.astype(jnp.float32) for x in arrays)
    )
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


def memory(kind, length):
    """Bytes that a gradient takes, besides what goes in and out."""
    arrays = [jax.ShapeDtypeStruct((B, length, *x.shape[2:]), x.dtype) for x in draw(kind, 1)]

    def total(*arrays):
        return jnp.sum(jnp.sin(run(kind, *arrays)[0]))

    pull = jax.jit(jax.grad(total, argnums=tuple(range(len(arrays)))))
    return pull.lower(*arrays).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@all_kinds
def test_memory_grows_with_the_length(kind):
    assert memory(kind, 4096) <= 2.2 * memory(kind, 2048)


@pytest.mark.parametrize('name', KINDS)
def test_texts_are_read_back(name):
    kind = parse(name)
    assert kind == KINDS[name]()
    assert str(kind) == name
    for field in kind.__dataclass_fields__:
        changed = parse(f'{name}({field}={0 if field == "causal" else 3})')
        assert changed != kind
        assert parse(str(changed)) == changed
        assert len({kind, changed, parse(name)}) == 2
    assert kind.is_causal
    assert parse_pattern(('causal', name)) == (causal, kind)


def test_what_is_read():
    assert parse('performer(128, seed=7)') == Performer(features=128, seed=7)
    assert str(Performer(128, causal=0)) == 'performer(features=128, causal=0)'
    assert not parse('linear(causal=0)').is_causal


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('gated_dleta', "'gated_dleta' is not known. Did you mean 'gated_delta'?"),
        ('linaer', "Did you mean 'linear'?"),
        ('performer(features=0)', 'features must be an integer of at least 1'),
        ('linear(causal=2)', 'causal must be 1, or 0 to see later tokens too'),
        ('gated_delta(wide=3)', r'write gated_delta\(width=4, expand=1\)'),
        ('causal & linear', 'no mask that can be combined'),
        ('~gated_linear', 'no mask that can be combined'),
        ('heads(causal, performer)', 'no mask that can be combined'),
    ],
)
def test_wrong_texts(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)
