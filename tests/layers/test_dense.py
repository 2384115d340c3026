import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.dense import product


def plain(x, kernel, inputs):
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (axes, ((), ())))


# The rows of the last are more than the CPU's product sums at a time.
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
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
def test_product_is_the_plain_one_in_value_and_gradient(x_shape, kernel_shape, inputs, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], x_shape).astype(dtype)
    kernel = jax.random.normal(keys[1], kernel_shape)
    weights = jax.random.normal(keys[2], plain(x, kernel, inputs).shape)

    def loss(function):
        return lambda x, kernel: jnp.sum(weights * jnp.sin(function(x, kernel, inputs)))

    ours, ours_gradient = jax.jit(jax.value_and_grad(loss(product), (0, 1)))(x, kernel)
    value, gradient = jax.value_and_grad(loss(plain), (0, 1))(x, kernel)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(ours, value, rtol=tolerance)
    for a, b, like in zip(ours_gradient, gradient, (x, kernel), strict=True):
        assert a.dtype == like.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_the_result_may_be_wider_than_the_operands():
    x, kernel = jnp.full((1, 512), 1.0, jnp.bfloat16), jnp.full((512, 1), 1 / 128 + 1 / 2**14)
    assert product(x, kernel).dtype == jnp.bfloat16
    wide = product(x, kernel, dtype=jnp.float32)
    # 1/128 + 2^-14 in bfloat16, times 512: not a bfloat16 itself.
    assert wide.dtype == jnp.float32
    assert float(wide[0, 0]) == 512 * float(jnp.bfloat16(1 / 128 + 1 / 2**14))
