"""Every attention of the table against a float64 oracle, and in what must hold for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import ATTENTIONS
from lm.attention.masks import MASKS, Causal, Full, parse
from lm.errors import InputError

SOFTCAPS = [None, 2.0]


def oracle(query, key, value, mask, segments=None, positions=None, bias=None, softcap=None):
    """One query and head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(query)
    for b, t, h in np.ndindex(query.shape[:3]):
        g = h * key.shape[2] // query.shape[2]
        logits = key[b, :, g] @ query[b, t, h] / np.sqrt(query.shape[-1])
        logits = softcap * np.tanh(logits / softcap) if softcap else logits
        logits = (
            logits
            if bias is None
            else logits
            + np.broadcast_to(
                bias, (*query.shape[:1], query.shape[2], query.shape[1], key.shape[1])
            )[b, h, t]
        )
        q_place, k_places = (
            (t, np.arange(key.shape[1]))
            if positions is None
            else (positions[0][b, t], positions[1][b])
        )
        seen = np.asarray(mask.allows(q_place, k_places))
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


@pytest.mark.parametrize('softcap', SOFTCAPS)
@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('attend', ATTENTIONS.values(), ids=ATTENTIONS)
class TestOracle:
    def test_plain(self, attend, mask, groups, softcap):
        arrays = inputs(groups=groups)
        got = attend(*arrays, parse(mask), softcap=softcap)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, oracle(*arrays, parse(mask), softcap=softcap), atol=2e-6)

    def test_segments_bias_and_positions(self, attend, mask, groups, softcap):
        arrays = inputs(groups=groups, length=3)
        options = {
            'segments': (np.array([[1, 1, 2], [1, 2, 2]]), np.array([[1, 1, 1, 2, 2, 0, 0]] * 2)),
            'positions': (np.array([[1, 2, 4], [0, 3, 4]]), np.array([[0, 1, 2, 3, 4, 5, 6]] * 2)),
            'bias': np.random.default_rng(1).normal(size=(1, 4, 3, 7)).astype(np.float32),
            'softcap': softcap,
        }
        got = attend(*arrays, parse(mask), **options)
        np.testing.assert_allclose(got, oracle(*arrays, parse(mask), **options), atol=2e-6)


@pytest.mark.parametrize('softcap', SOFTCAPS)
@pytest.mark.parametrize('attend', ATTENTIONS.values(), ids=ATTENTIONS)
class TestRelations:
    def test_causal_gradients_are_exactly_zero(self, attend, softcap):
        query, key, value = inputs(batch=1)

        def jacobian(argument):
            def run(x):
                out = attend(query, *(x, value) if argument == 'key' else (key, x), Causal())
                return jnp.sum(out, axis=(0, 2, 3))  # [T]

            rows = jax.jacobian(run)(key if argument == 'key' else value)  # [T, B, S, G, K]
            return np.abs(rows).sum(axis=(1, 3, 4))  # [T, S]

        for argument in ('key', 'value'):
            matrix = jacobian(argument)
            assert (np.triu(matrix, 1) == 0).all()
            assert (matrix[np.tril_indices(7, -1)] > 0).all()

    @pytest.mark.parametrize('mask', MASKS)
    def test_two_segments_are_two_calls(self, attend, softcap, mask):
        arrays = inputs()
        segments = np.array([[1, 1, 1, 2, 2, 2, 2]] * 2)
        together = attend(*arrays, parse(mask), segments=(segments, segments), softcap=softcap)
        alone = [
            attend(*(x[:, part] for x in arrays), parse(mask), softcap=softcap)
            for part in (slice(0, 3), slice(3, 7))
        ]
        np.testing.assert_allclose(together, np.concatenate(alone, axis=1), atol=1e-6)

    def test_rows_that_see_nothing_are_zero_with_finite_gradients(self, attend, softcap):
        arrays = inputs()
        segments = np.array([[1, 1, 3, 2, 2, 2, 2]] * 2), np.array([[1, 1, 1, 2, 2, 2, 2]] * 2)

        def total(query, key, value):
            out = attend(query, key, value, Full(), segments=segments, softcap=softcap)
            return jnp.sum(out**2), out

        grads, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*map(jnp.asarray, arrays))
        assert (np.asarray(out[:, 2]) == 0).all()
        assert np.abs(out[:, 1]).min() > 0
        assert all(np.isfinite(g).all() for g in grads)

    def test_bfloat16_in_and_out(self, attend, softcap):
        arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs()]
        got = attend(*arrays, Causal(), softcap=softcap)
        assert got.dtype == jnp.bfloat16
        want = oracle(*(x.astype(jnp.float32) for x in arrays), Causal(), softcap=softcap)
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)


def test_softcap_bounds_what_one_key_can_win():
    """With logits between -c and c, no weight is below that of the extreme logits."""
    query, key = np.zeros((1, 1, 1, 2), np.float32), np.zeros((1, 2, 1, 2), np.float32)
    query[..., 0], key[0, 0, 0, 0] = 1e3, 1e3
    value = np.array([1.0, 0.0], np.float32).reshape(1, 2, 1, 1) * np.ones(2, np.float32)
    got = ATTENTIONS['dense'](query, key, value, Full(), softcap=1.0)
    np.testing.assert_allclose(got[0, 0, 0, 0], np.e / (np.e + 1), rtol=1e-6)


@pytest.mark.parametrize(
    ('implementation', 'message'),
    [('cudn', "Did you mean 'cudnn'"), ('cudnn', "needs config.model.dtype = 'bfloat16'")],
)
def test_wrong_implementation(implementation, message):
    with pytest.raises(InputError, match=message):
        ATTENTIONS['dense'](*inputs(), Causal(), implementation=implementation)


def test_cudnn_needs_a_gpu():
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs()]
    with pytest.raises(InputError, match='needs an NVIDIA GPU'):
        ATTENTIONS['dense'](*arrays, Causal(), implementation='cudnn')
    with pytest.raises(InputError, match='attention_softcap = 0'):
        ATTENTIONS['dense'](*arrays, Causal(), implementation='cudnn', softcap=1.0)
