import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.objectives import spans
from tests.objectives.specs import seeded, share_is


def test_by_hand():
    assert spans.fill([2, 0, 3, 4], 4).tolist() == [2, 0, 2]
    assert spans.fill([2, 1], 4).tolist() == [2, 1]
    assert spans.places(np.array([1, 5]), np.array([2, 3])).tolist() == [1, 2, 5, 6, 7]
    replaced = spans.replace(
        np.array([10, 11, 12, 13]), np.array([1, 3]), np.array([2, 0]), [90, 91]
    )
    assert replaced.tolist() == [10, 90, 91, 13]


@given(
    lengths=st.lists(st.integers(0, 5), max_size=8),
    more=st.integers(0, 20),
    gap=st.integers(0, 2),
    seed=st.integers(0, 2**32),
)
def test_spans_are_in_the_text_and_apart(lengths, more, gap, seed):
    others = gap * max(len(lengths) - 1, 0) + more
    starts = spans.place(np.array(lengths, int), others, gap, np.random.default_rng(seed))
    ends = starts + np.array(lengths, int)
    assert (starts[1:] - ends[:-1] >= gap).all()
    assert (starts >= 0).all()
    assert (ends <= others + sum(lengths)).all()


@pytest.mark.parametrize(('gap', 'ways'), [(0, 10), (1, 6)])
def test_all_places_are_as_likely(gap, ways):
    """Two spans among three other tokens: 5 choose 2 ways, or 4 choose 2 when they are apart."""
    rng = seeded()
    seen = collections.Counter(
        tuple(spans.place(np.array([1, 2]), 3, gap, rng).tolist()) for _ in range(5000)
    )
    assert len(seen) == ways
    assert all(share_is(number, 5000, 1 / ways) for number in seen.values())


def test_all_lengths_are_as_likely():
    rng = seeded()
    seen = collections.Counter(tuple(spans.compose(5, 3, rng).tolist()) for _ in range(6000))
    assert set(map(sum, seen)) == {5}
    assert len(seen) == 6
    assert all(share_is(number, 6000, 1 / 6) for number in seen.values())
