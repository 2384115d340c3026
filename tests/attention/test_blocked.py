"""Attention in blocks of queries against the plain form, over several blocks, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import blocked
from lm.attention.dense import attend
from lm.attention.masks import MASKS, Causal, parse

T = 300  # Three blocks, the last one not full.


def arrays(dtype, groups):
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (4, groups, groups, 4)
    return [
        jax.random.normal(k, (2, T, n, 8)).astype(dtype) for k, n in zip(keys, heads, strict=True)
    ]


SEGMENTS = np.repeat([[1, 2, 0], [1, 2, 3]], 100, axis=1)
# The first row's last hundred queries see nothing at all.
BLIND = np.concatenate([SEGMENTS[:, :200], [[7] * 100, [3] * 100]], axis=1)


@pytest.mark.parametrize(
    ('mask', 'groups', 'segments', 'softcap'),
    [
        *((mask, 4, None, None) for mask in MASKS),
        *((mask, 2, (SEGMENTS, SEGMENTS), None) for mask in MASKS),
        ('causal', 1, None, 1.5),
        ('causal', 4, (BLIND, SEGMENTS), 1.5),
        ('full', 4, (BLIND, SEGMENTS), None),
    ],
)
def test_blocks_are_the_plain_form_in_value_and_gradient(mask, groups, segments, softcap):
    query, key, value, weights = arrays(jnp.float32, groups)

    def run(implementation):
        def loss(query, key, value):
            out = attend(
                query,
                key,
                value,
                parse(mask),
                segments=segments,
                softcap=softcap,
                implementation=implementation,
            )
            return jnp.sum(weights * out), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, key, value)

    (ours, out), (theirs, out_there) = run('blocked'), run('xla')
    np.testing.assert_allclose(out, out_there, atol=2e-6)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_sixteen_bits_are_as_near_to_float32_as_the_plain_form():
    query, key, value, weights = arrays(jnp.bfloat16, 4)

    def gradients(implementation, dtype):
        def loss(*inputs):
            out = attend(*inputs, Causal(), implementation=implementation)
            return jnp.sum(weights.astype(jnp.float32) * out)

        inputs = [x.astype(dtype) for x in (query, key, value)]
        return [g.astype(jnp.float32) for g in jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)]

    exact = gradients('xla', jnp.float32)
    for ours, plain, want in zip(
        gradients('blocked', jnp.bfloat16), gradients('xla', jnp.bfloat16), exact, strict=True
    ):
        assert jnp.linalg.norm(ours - want) < 1.2 * jnp.linalg.norm(plain - want)
        assert jnp.linalg.norm(ours - want) < 0.02 * jnp.linalg.norm(want)


def test_blocks_leave_out_keys_that_none_of_their_queries_sees():
    blocks = blocked._blocks(T, T, Causal())
    assert [(r.start, r.stop) for r, _ in blocks] == [(0, 128), (128, 256), (256, 300)]
    assert [(k.start, k.stop) for _, k in blocks] == [(0, 128), (0, 256), (0, 300)]
    assert len(blocked._blocks(10_000, 1, Causal())) <= 16
