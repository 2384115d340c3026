"""Dense layers that round what they multiply, held to closed forms and to float32."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lm.layers.dense import Dense
from lm.layers.int8 import product as int8
from lm.layers.products import HISTORIES, HISTORY, PRODUCTS

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
# The largest part of a number that is lost by rounding: half of 1 / 127.5 of the largest of a row, and in
# e4m3, which has three bits after the first, 1 / 16 of the number itself.
ROUNDING = {'int8': 0.5 / 127.5, 'int8_forward': 0.5 / 127.5, 'fp8': 1 / 16}


def settled(layer, x, weights=1.0, steps=3):
    """Variables of a layer whose histories are those of `steps` steps."""
    variables = layer.init(jax.random.key(0), x)
    for _ in range(steps):
        variables |= {HISTORIES: gradients(layer, variables, x, weights)[0][HISTORIES]}
    return variables


def gradients(layer, variables, x, weights=1.0):
    """Gradients of a weighted sum of the outputs, by the variables and by `x`."""

    def loss(variables, x):
        return jnp.sum(weights * layer.apply(variables, x).astype(jnp.float32))

    grads = jax.grad(loss, (0, 1))(variables, x)
    return {HISTORIES: {}} | grads[0], grads[1]


def test_int8_is_its_closed_form():
    x = jnp.array([[1.0, -0.5, 0.003], [100.0, 64.0, -3.0]])
    kernel = jnp.array([[2.0, 0.1], [-1.0, 0.2], [0.5, -0.05]])
    # 127 stands for the largest of each row of x, and of each column of the kernel.
    small_x = [[127, -64, 0], [127, 82, -4]]
    small_kernel = [[127, 64], [-64, 127], [32, -32]]
    scales = np.array([[1.0], [100.0]]) / 127.5 * np.array([2.0, 0.2]) / 127.5
    expected = np.matmul(small_x, small_kernel) * scales
    for backward in (False, True):
        found = int8(x, kernel, 1, backward)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_int8_sums_as_integers():
    """On the way the sum is 127 x 127 x 2,000, of which float32 has no last bit."""
    x = jnp.concatenate([jnp.ones(2000), -jnp.ones(2000), jnp.array([1 / 127.5])])
    y = int8(x[None], jnp.ones((4001, 1)), 1, True)
    assert float(y[0, 0]) == pytest.approx(127 / 127.5**2, rel=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_fp8_is_its_closed_form(dtype):
    layer = Dense((2,), dtype=dtype, matmul='fp8')
    x = jnp.array([[1.0, -0.5, 0.003], [3.0, 0.7, -0.2]], dtype)
    kernel = jnp.array([[2.0, 0.1], [-1.0, 0.2], [0.5, -0.05]])
    weights = jnp.array([[1.0, 1e-3], [-0.25, 2e-6]])
    past = {'input': 2.0, 'kernel': 4.0, 'gradient': 1e-2}  # 3.0, 1.0 and -0.25 will be clipped
    histories = {name: jnp.zeros(HISTORY).at[5].set(largest) for name, largest in past.items()}
    variables = {'params': {'kernel': kernel}, HISTORIES: histories}

    def rounded(array, name, kind):
        most = float(ml_dtypes.finfo(kind).max)
        scale = np.float32(past[name] / most)
        return (
            np.clip(np.float32(array) / scale, -most, most).astype(kind).astype(np.float32) * scale
        )

    small_x, small_kernel = rounded(x, 'input', E4M3), rounded(kernel, 'kernel', E4M3)
    expected = small_x @ small_kernel
    y = layer.apply(variables, x)
    assert y.dtype == dtype
    tolerance = {'rtol': 1e-6 if dtype == jnp.float32 else 1e-2, 'atol': 1e-9}
    np.testing.assert_allclose(np.float32(y), expected, **tolerance)
    found, d_x = gradients(layer, variables, x, weights)
    gradient = rounded(weights.astype(dtype), 'gradient', E5M2)
    np.testing.assert_allclose(found['params']['kernel'], small_x.T @ gradient, rtol=1e-5)
    np.testing.assert_allclose(np.float32(d_x), gradient @ small_kernel.T, **tolerance)
    # What replaces the histories: one place on, and the largest magnitude of now.
    now = {'input': 3.0, 'kernel': 2.0, 'gradient': 1.0}
    for name, largest in past.items():
        expected = np.zeros(HISTORY, np.float32)
        expected[[0, 4]] = now[name], largest
        np.testing.assert_array_equal(found[HISTORIES][name], expected)


@pytest.mark.first_quick
@pytest.mark.parametrize('name', PRODUCTS)
@pytest.mark.parametrize('biased', [False, True])
@pytest.mark.parametrize(
    ('x_shape', 'features', 'inputs'),
    [((2, 3, 64), (32,), 1), ((2, 3, 64), (4, 8), 1), ((2, 3, 4, 16), (32,), 2)],
)
def test_products_and_gradients_are_those_of_float32_but_for_the_rounding(
    name, biased, x_shape, features, inputs
):
    x = jax.random.normal(jax.random.key(1), x_shape)
    make = functools.partial(Dense, features, inputs, biased, scale=10.0)
    plain, layer = make(), make(matmul=name)
    weights = jax.random.normal(jax.random.key(2), (*x_shape[:-inputs], *features))
    variables = settled(layer, x, weights)
    exact = plain.apply(variables, x), *gradients(plain, variables, x, weights)
    found = layer.apply(variables, x), *gradients(layer, variables, x, weights)
    for a, b in zip(
        jax.tree.leaves((found[0], found[1]['params'], found[2])),
        jax.tree.leaves((exact[0], exact[1]['params'], exact[2])),
        strict=True,
    ):
        assert a.dtype == b.dtype == jnp.float32
        # Of both operands; a gradient's in e5m2 is twice as large.
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 3 * ROUNDING[name]
    if name == 'int8_forward':  # Rounding is passed by as if it were not there.
        np.testing.assert_allclose(
            found[1]['params']['kernel'], exact[1]['params']['kernel'], rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(found[2], exact[2], rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(found[0] - exact[0]) > 0  # It is rounded at all.


@pytest.mark.slow
@pytest.mark.parametrize('name', PRODUCTS)
def test_no_token_is_seen_in_another(name):
    """Nor in the scale that it is rounded by, or a decoder would see what is to come."""
    layer = Dense((8,), matmul=name)
    x = jax.random.normal(jax.random.key(0), (1, 4, 16))
    variables = settled(layer, x)
    changed = layer.apply(variables, x.at[0, 3].multiply(1e3))
    np.testing.assert_array_equal(changed[0, :3], layer.apply(variables, x)[0, :3])


@pytest.mark.parametrize('name', PRODUCTS)
def test_parameters_are_those_of_a_plain_layer(name):
    x = jnp.ones((1, 16))
    found = Dense((8,), bias=True, matmul=name).init(jax.random.key(0), x)['params']
    expected = Dense((8,), bias=True).init(jax.random.key(0), x)['params']
    jax.tree.map(np.testing.assert_array_equal, found, expected)
