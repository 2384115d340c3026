import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.dense import product


def plain(x, kernel, inputs):
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return jax.lax.dot_general(x, kernel, (axes, ((), ())))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ('x_shape', 'kernel_shape', 'inputs'),
    [((2, 3, 4), (4, 5), 1), ((2, 3, 4), (4, 5, 6), 1), ((2, 3, 5, 6), (5, 6, 4), 2)],
)
def test_product_is_the_plain_one_in_value_and_gradient(x_shape, kernel_shape, inputs, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], x_shape).astype(dtype)
    kernel = jax.random.normal(keys[1], kernel_shape).astype(dtype)
    weights = jax.random.normal(keys[2], plain(x, kernel, inputs).shape)

    def loss(function):
        return lambda x, kernel: jnp.sum(weights * jnp.sin(function(x, kernel, inputs)))

    ours, ours_gradient = jax.value_and_grad(loss(product), (0, 1))(x, kernel)
    value, gradient = jax.value_and_grad(loss(plain), (0, 1))(x, kernel)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(ours, value, rtol=tolerance)
    for a, b in zip(ours_gradient, gradient, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        )
