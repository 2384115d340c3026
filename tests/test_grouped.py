"""Both forms of grouped products against a product for each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import grouped

FORMS = {
    'ragged': (grouped.products_ragged, grouped.outer_ragged),
    'blocks': (grouped.products_in_blocks, grouped.outer_in_blocks),
}
# Groups without rows, of more than a block, and rows of no group after the last.
SIZES = [[3, 0, 6, 1], [0, 0, 12, 0], [0, 0, 0, 0], [5, 1, 1, 4]]
ROWS, INPUTS, OUTPUTS = 12, 5, 7


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(grouped, '_ROWS', 4)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_each_row_has_the_matrix_of_its_group(form, sizes):
    x, kernel, gradient = draw(ROWS, INPUTS), draw(4, INPUTS, OUTPUTS), draw(ROWS, OUTPUTS, seed=1)
    groups = np.repeat(np.arange(4), sizes)
    want, outer = np.zeros((ROWS, OUTPUTS)), np.zeros((4, INPUTS, OUTPUTS))
    for row, group in enumerate(groups):
        want[row] = x[row] @ kernel[group]
        outer[group] += np.outer(x[row], gradient[row])
    products, outers = FORMS[form]
    sizes = jnp.array(sizes, jnp.int32)
    np.testing.assert_allclose(products(x, kernel, sizes), want, atol=1e-5)
    np.testing.assert_allclose(outers(x, gradient, sizes), outer, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_are_those_of_the_library(dtype):
    x, kernel = draw(ROWS, INPUTS).astype(dtype), draw(4, INPUTS, OUTPUTS)
    sizes, cotangent = jnp.array(SIZES[0], jnp.int32), draw(ROWS, OUTPUTS, seed=1)

    def pulled(function):
        return jax.grad(lambda x, k: jnp.vdot(function(x, k, sizes), cotangent), (0, 1))(x, kernel)

    got = pulled(grouped.dot)
    want = pulled(lambda x, k, sizes: jax.lax.ragged_dot(x.astype(jnp.float32), k, sizes))
    assert [g.dtype for g in got] == [dtype, 'float32']
    for a, b in zip(got, want, strict=True):
        a, b = (np.asarray(value, np.float32) for value in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-5 if dtype == 'float32' else 0.05)


def test_rows_of_no_group_are_zero_whatever_the_library_leaves_there(monkeypatch):
    """On a TPU they are what was in memory."""
    library = jax.lax.ragged_dot

    def leaves_what_was_there(x, kernel, sizes, **options):
        y = library(x, kernel, sizes, **options)
        return jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], y, jnp.nan)

    monkeypatch.setattr(jax.lax, 'ragged_dot', leaves_what_was_there)
    x, kernel, sizes = draw(ROWS, INPUTS), draw(4, INPUTS, OUTPUTS), jnp.array([3, 0, 6, 1])
    y = grouped.products_ragged(x, kernel, sizes)
    assert jnp.all(y[10:] == 0)
    assert jnp.all(jnp.isfinite(y))
