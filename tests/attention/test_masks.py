"""Masks against small matrices written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention.masks import MASKS, Causal, Full, parse
from lm.errors import InputError

EXPECTED = {
    'causal': [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
    'full': [[1, 1, 1, 1]] * 4,
}


@pytest.mark.parametrize('library', [np, jnp])
@pytest.mark.parametrize('name', MASKS)
def test_literal(name, library):
    places = library.arange(4)
    allowed = parse(name).allows(places[:, None], places[None, :])
    assert isinstance(allowed, type(places))
    assert allowed.dtype == bool
    np.testing.assert_array_equal(allowed, np.array(EXPECTED[name], bool))


@pytest.mark.parametrize('name', MASKS)
def test_asks_about_positions_not_indices(name):
    """A slice of the places gives the slice of the matrix."""
    places = np.arange(4)
    np.testing.assert_array_equal(
        parse(name).allows(places[2:, None], places[None, 1:]),
        np.array(EXPECTED[name], bool)[2:, 1:],
    )


def test_masks_are_values():
    assert parse(' causal ') == Causal() != Full()
    assert len({parse('causal'), Causal(), Full()}) == 2


def test_unknown_names_the_nearest():
    with pytest.raises(InputError, match=r"config.model.attention = 'casual'.*'causal'"):
        parse('casual')
