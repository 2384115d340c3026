import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.dense import affine


def plain(x, kernel, bias, inputs):
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    y = jax.lax.dot_general(x, kernel.astype(x.dtype), (axes, ((), ())))
    return y if bias is None else y + bias.astype(x.dtype)


# The rows of the last are more than the CPU's product sums at a time.
@pytest.mark.first_quick
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('biased', [False, True])
@pytest.mark.parametrize(
    ('x_shape', 'kernel_shape', 'inputs'),
    [
        ((2, 3, 4), (4, 5), 1),
        ((2, 3, 5), (5, 4), 1),
        ((2, 3, 4), (4, 5, 6), 1),
        ((2, 3, 5, 6), (5, 6, 4), 2),
        ((3, 4), (4, 5), 1),
        ((3, 700, 6), (6, 4), 1),
    ],
)
def test_affine_is_the_plain_one_in_value_and_gradient(
    x_shape, kernel_shape, inputs, biased, dtype
):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], x_shape).astype(dtype)
    kernel = jax.random.normal(keys[1], kernel_shape)
    bias = jax.random.normal(keys[2], kernel_shape[inputs:]) if biased else None
    weights = jax.random.normal(keys[3], plain(x, kernel, bias, inputs).shape)

    def loss(function, *arrays):
        y = function(*arrays, inputs).astype(jnp.float32)
        return jnp.sum(weights * y), y

    arrays = [x, kernel, bias][: 2 + biased]
    which = tuple(range(len(arrays)))
    run = jax.jit(jax.grad(functools.partial(loss, affine), which, has_aux=True))
    ours, value = run(x, kernel, bias)
    # The reference computes in float32, from what the operands are in their dtype.
    exact = [array.astype(dtype).astype(jnp.float32) for array in (x, kernel)]
    reference = jax.grad(functools.partial(loss, plain), which, has_aux=True)
    theirs, value_there = reference(*exact, bias)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip((value, *ours), (value_there, *theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())
    assert [g.dtype for g in ours] == [array.dtype for array in arrays]


def test_the_result_may_be_wider_than_the_operands():
    x, kernel = jnp.ones((1, 3), jnp.bfloat16), jnp.array([[1.0], [1 / 256], [1 / 256]])
    assert affine(x, kernel).dtype == jnp.bfloat16
    assert float(affine(x, kernel, None, 1, jnp.float32)[0, 0]) == 1 + 1 / 128
