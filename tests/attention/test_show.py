"""Pictures of masks; what they look like is looked at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.attention import show
from lm.attention.masks import causal, heads, window
from lm.attention.show import _shares, density
from tests.attention.strategies import MASKS


@given(MASKS, st.integers(1, 200))
def test_density_counts_pairs(mask, length):
    places = np.arange(length)
    allowed = np.broadcast_to(mask.allows(places[:, None], places), (length, length))
    assert density(mask, length) == allowed.mean()


@pytest.mark.parametrize('length', [5, 600, 1025])
def test_pixels_hold_the_part_of_their_pairs(length):
    shares = _shares(causal & window(40), length)
    size = -(-length // 512)
    places = np.arange(length)
    allowed = (causal & window(40)).allows(places[:, None], places)
    for i, j in [(0, 0), (3, 1), (1, 3), (-1, -1)]:
        i, j = i % len(shares), j % len(shares)
        block = allowed[i * size : (i + 1) * size, j * size : (j + 1) * size]
        assert shares[i, j] == pytest.approx(block.mean())


def test_a_pattern_is_one_picture(tmp_path):
    picture = show(('gpt3(8)', heads(causal, causal & window(4))), 64, tmp_path / 'masks.png')
    titles = [axes.get_title().replace('\n', ' ') for axes in picture.figure.axes]
    assert titles == [
        'layer 1: causal',
        'layer 2: causal & window(8)',
        'layer 3, heads 1: causal',
        'layer 3, heads 2: causal & window(4)',
    ]
    assert picture.densities[0] == 65 / 128
    assert (tmp_path / 'masks.png').read_bytes().startswith(b'\x89PNG')
