"""The parts of a mask against the mask itself, and the orders against what they say."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.attention import masks, table
from lm.attention.masks import causal, window
from lm.attention.table import ByResidue, InPlace, OnlySummaries
from tests.attention.strategies import MASKS


@pytest.mark.parametrize(
    ('order', 'places'),
    [
        (InPlace(5, 4), [0, 1, 2, 3, 4, -1, -1, -1]),
        (ByResidue(7, 2, 3), [0, 3, 6, -1, 1, 4, -1, -1, 2, 5, -1, -1]),
        (ByResidue(6, 2, 3), [0, 3, 1, 4, 2, 5]),
        (OnlySummaries(8, 2, 3, 1), [2, 5, -1, -1]),
        (OnlySummaries(9, 4, 3, 2), [1, 2, 4, 5, 7, 8, -1, -1]),
        (OnlySummaries(8, 2, 4, 4), [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_orders(order, places):
    np.testing.assert_array_equal(table.places(order), places)
    x = jnp.arange(2 * order.length).reshape(2, order.length) + 1
    taken = order.take(x, 1)
    filled = np.where(np.array(places) < 0, 0, x[:, np.maximum(places, 0)])
    np.testing.assert_array_equal(taken, filled)
    put = order.put(taken, 1)
    assert put.shape == x.shape
    there = np.isin(np.arange(order.length), places)
    np.testing.assert_array_equal(put, np.where(there, x, 0))


def covered(mask, length, source):
    """How often each pair is allowed by a part, in a block that its table has."""
    count = np.zeros((length, source), int)
    for part in table.plan(mask, length, source):
        q_places, k_places = table.places(part.query), table.places(part.key)
        for rows in part.rows:
            for query, start, others in zip(rows.queries, rows.starts, rows.others, strict=True):
                q = q_places[query * part.query.block :][: part.query.block]
                blocks = [*range(start, start + rows.run), *(b for b in others if b >= 0)]
                assert len(set(blocks)) == len(blocks)
                k = np.concatenate(
                    [k_places[b * part.key.block :][: part.key.block] for b in blocks]
                )
                q, k = q[q >= 0], k[k >= 0]
                count[np.ix_(q, k)] += np.broadcast_to(
                    part.mask.allows(q[:, None], k), (len(q), len(k))
                )
    return count


@settings(max_examples=30)
@given(MASKS, st.integers(1, 700), st.integers(1, 700))
def test_parts_hold_each_allowed_pair_once(mask, length, source):
    want = mask.allows(np.arange(length)[:, None], np.arange(source))
    np.testing.assert_array_equal(covered(mask, length, source), want)


@pytest.mark.parametrize('stride', [2, 7, 64, 100])
def test_strides_and_summaries_beyond_a_window_are_parts_of_their_own(stride):
    mask = causal & (window(70) | masks.strided(stride) | masks.summaries(stride, 2))
    kinds = [(type(part.query), type(part.key)) for part in table.plan(mask, 1000, 1000)]
    assert kinds == [(InPlace, InPlace), (ByResidue, ByResidue), (InPlace, OnlySummaries)]
    np.testing.assert_array_equal(
        covered(mask, 1000, 1000), mask.allows(np.arange(1000)[:, None], np.arange(1000))
    )


def test_a_negated_stride_stays_in_place():
    (part,) = table.plan(causal & ~masks.strided(4), 300, 300)
    assert isinstance(part.key, InPlace)


@pytest.mark.parametrize(
    ('mask', 'pairs'),
    [
        # Blocks of 128 queries and of 64 keys: a row sees up to 255 tokens before it.
        (causal & window(256), 128 * 384),
        (causal & masks.chunks(128), 128 * 128),
        (causal & masks.sparse_transformer_strided(64), None),
    ],
    ids=str,
)
def test_pairs_grow_as_the_mask_does(mask, pairs):
    lengths = (4096, 8192)
    small, large = (sum(part.pairs for part in table.plan(mask, n, n)) for n in lengths)
    if pairs:
        assert large <= pairs * 64
        assert large / small == pytest.approx(2, rel=0.05)
    else:  # A token in `stride` sees the rest: half as much of the square in all.
        assert large / 8192**2 < 0.05


def test_nothing_has_no_parts():
    assert table.plan(~masks.full, 100, 100) == ()


@pytest.mark.parametrize(
    ('mask', 'simplified'),
    [
        (causal & (window(3) | masks.strided(2)), causal & window(3)),
        (causal & masks.strided(2), table.NOTHING),
        (causal | masks.strided(2), causal),
        (masks.strided(2), table.NOTHING),
        (causal & ~masks.strided(2), causal),
    ],
    ids=str,
)
def test_without_an_atom(mask, simplified):
    found = table.replace(mask, masks.strided(2), table.NOTHING)
    places = np.arange(9)
    np.testing.assert_array_equal(
        found.allows(places[:, None], places), simplified.allows(places[:, None], places)
    )
    assert masks.strided(2) not in {*table.positive_atoms(found), *table._negative_atoms(found)}
