"""Masks against small matrices written out by hand, and in what must hold for all of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.attention import masks
from lm.attention.masks import EMPTY, FULL, Known, Range, causal, full, window
from lm.errors import InputError
from tests.attention.strategies import MASKS

EXPECTED = {
    masks.causal: ['1...', '11..', '111.', '1111'],
    masks.full: ['1111'] * 4,
    masks.segments: ['1111'] * 4,  # as long as nothing is known
    masks.prefix: ['....'] * 4,
    masks.window(2): ['11..', '111.', '.111', '..11'],
    masks.strided(2): ['1.1.', '.1.1', '1.1.', '.1.1'],
    masks.strided(3): ['1..1', '.1..', '..1.', '1..1'],
    masks.chunks(2): ['11..', '11..', '..11', '..11'],
    masks.summaries(2, 1): ['.1.1'] * 4,
    masks.summaries(3, 2): ['.11.'] * 4,
    masks.global_tokens(1): ['1111', '1...', '1...', '1...'],
    causal & window(2): ['1...', '11..', '.11.', '..11'],
    causal & ~window(2): ['....', '....', '1...', '11..'],
    window(1) | masks.global_tokens(1): ['1111', '11..', '1.1.', '1..1'],
    masks.fixed(2, 1): ['11.1', '11.1', '.111', '.111'],
    masks.sparse_transformer_strided(2): ['1...', '11..', '111.', '.111'],
    masks.sparse_transformer_fixed(2, 1): ['1...', '11..', '.11.', '.111'],
}


def matrix(lines):
    return np.array([[c == '1' for c in line] for line in lines])


def dense(mask, length):
    places = np.arange(length)
    return np.broadcast_to(mask.allows(places[:, None], places), (length, length))


@pytest.mark.parametrize('library', [np, jnp])
@pytest.mark.parametrize('mask', EXPECTED, ids=str)
def test_literal(mask, library):
    places = library.arange(4)
    allowed = mask.allows(places[:, None], places[None, :])
    assert isinstance(allowed, type(places))
    assert allowed.dtype == bool
    np.testing.assert_array_equal(allowed, matrix(EXPECTED[mask]))


@given(MASKS)
def test_asks_about_positions_not_indices_in_numpy_and_jax(mask):
    """A slice of the places gives the slice of the matrix."""
    queries, keys = np.arange(50, 70)[:, None], np.arange(30, 90)[None]
    want = dense(mask, 90)[50:70, 30:90]
    np.testing.assert_array_equal(mask.allows(queries, keys), want)
    np.testing.assert_array_equal(mask.allows(jnp.asarray(queries), jnp.asarray(keys)), want)


def test_what_is_known_of_tokens():
    same = np.array([[1, 0], [0, 1]], bool)
    queries, keys = np.arange(2)[:, None], np.arange(2)
    known = Known(same_segment=same, in_prefix=np.array([False, True]))
    np.testing.assert_array_equal(masks.segments.allows(queries, keys, known), same)
    np.testing.assert_array_equal(masks.prefix.allows(queries, keys, known), [[0, 1], [0, 1]])
    both = (causal | masks.prefix).allows(queries, keys, known)
    np.testing.assert_array_equal(both, [[1, 1], [1, 1]])


@settings(max_examples=300)
@given(MASKS, st.integers(1, 30), st.integers(1, 30))
def test_classes_never_contradict_the_pairs(mask, rows, columns):
    length = 97
    allowed = dense(mask, length)
    q, k = np.arange(0, length, rows), np.arange(0, length, columns)
    q_high, k_high = np.minimum(q + rows, length) - 1, np.minimum(k + columns, length) - 1
    classes = mask.classify(Range(q[:, None], q_high[:, None]), Range(k, k_high))
    assert classes.shape == (len(q), len(k))
    for i, j in np.ndindex(classes.shape):
        block = allowed[q[i] : q_high[i] + 1, k[j] : k_high[j] + 1]
        if classes[i, j] == EMPTY:
            assert not block.any()
        if classes[i, j] == FULL:
            assert block.all()


@pytest.mark.parametrize(
    'mask',
    [
        causal,
        full,
        *(masks.window(w) for w in (1, 4, 5, 16)),
        *(masks.strided(s) for s in (1, 3, 16)),
        *(masks.chunks(s) for s in (3, 8)),
        masks.summaries(8, 2),
        masks.summaries(5, 5),
        masks.global_tokens(5),
        masks.random_blocks(2, 0, 4),
        masks.random_blocks(1, 3, 8),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [4, 8])
def test_classes_of_single_masks_are_exact(mask, size):
    length = 64
    low = np.arange(0, length, size)
    blocks = Range(low, low + size - 1)
    classes = mask.classify(Range(blocks.low[:, None], blocks.high[:, None]), blocks)
    cut = dense(mask, length).reshape(length // size, size, length // size, size)
    np.testing.assert_array_equal(classes == EMPTY, ~cut.any(axis=(1, 3)))
    every = cut.all(axis=(1, 3))
    if isinstance(mask, masks.RandomBlocks):  # Several blocks together are never called full.
        assert not ((classes == FULL) & ~every).any()
    elif isinstance(mask, masks.GlobalTokens):  # The corner is full of both kinds together.
        np.testing.assert_array_equal((classes == FULL)[1:, 1:], every[1:, 1:])
    else:
        np.testing.assert_array_equal(classes == FULL, every)


@settings(max_examples=300)
@given(MASKS)
def test_reach_holds_all_earlier_keys_that_are_seen(mask):
    reach = mask.reach()
    for query, row in enumerate(dense(mask, 90)):
        for key in np.flatnonzero(row[: query + 1]):
            assert key < reach.pinned or query - key < reach.recent


@given(MASKS)
def test_what_is_called_causal_is(mask):
    if mask.is_causal:
        assert not np.triu(dense(mask, 90), 1).any()


def test_what_is_causal():
    for mask in (causal, causal & window(3), window(3) & (causal | causal), masks.gpt3()[1]):
        assert mask.is_causal
    for mask in (full, window(3), causal | window(3), ~causal, masks.bigbird(), masks.longformer()):
        assert not mask.is_causal
    assert masks.heads(causal, causal & window(2)).is_causal
    assert not masks.heads(causal, window(2)).is_causal


@given(MASKS, st.integers(1, 50))
def test_what_is_called_shift_invariant_is(mask, shift):
    if mask.is_shift_invariant:
        np.testing.assert_array_equal(dense(mask, 90)[shift:, shift:], dense(mask, 90 - shift))


def test_what_is_shift_invariant():
    for mask in (causal, causal & window(3) | masks.strided(2), ~masks.segments):
        assert mask.is_shift_invariant
    for mask in (masks.chunks(2), causal & masks.global_tokens(1), ~masks.random_blocks(1)):
        assert not mask.is_shift_invariant


@pytest.mark.parametrize(
    ('mask', 'recent', 'pinned'),
    [
        (causal & window(5), 5, 0),
        (causal & (window(5) | masks.global_tokens(2)), 5, 2),
        (causal & masks.chunks(8), 8, 0),
        (causal & masks.strided(8), np.inf, 0),
        (causal, np.inf, 0),
        (masks.heads(causal & window(5), causal & window(9)), 9, 0),
    ],
    ids=str,
)
def test_reach(mask, recent, pinned):
    assert mask.reach() == (recent, pinned)


def test_random_blocks_are_so_many_distinct_earlier_ones_spread_over_the_row():
    mask = causal & masks.random_blocks(3, seed=1, size=4)
    seen = dense(mask, 400)[::4, ::4]
    np.testing.assert_array_equal(seen.sum(axis=1), [min(i, 3) for i in range(100)])
    for i in range(3, 100):
        first, second, third = np.flatnonzero(seen[i])
        assert first < i / 3 <= second + 1
        assert second < 2 * i / 3 <= third + 1
        assert third < i
    other = dense(causal & masks.random_blocks(3, seed=2, size=4), 400)[::4, ::4]
    assert (seen != other).any(axis=1)[10:].mean() > 0.9
    both = dense(masks.random_blocks(3, 1, 4), 400)
    np.testing.assert_array_equal(both, both.T)


def test_masks_are_values():
    assert causal & window(3) == causal & window(3) != window(3) & causal
    assert causal & causal == causal | causal == causal
    assert ~~causal == causal
    assert (causal & full) & window(2) == causal & full & window(2)
    assert len({causal, masks.Causal(), window(3), masks.Window(3)}) == 2


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: window(0), r'window\(0\): width must be an integer of at least 1'),
        (lambda: window(2.5), r'window\(2.5\): width must be'),
        (lambda: masks.summaries(4, 5), 'count must be at most size, 4'),
        (lambda: masks.random_blocks(1, -1), 'seed must be an integer of at least 0'),
    ],
)
def test_wrong_numbers(make, message):
    with pytest.raises(InputError, match=message):
        make()
