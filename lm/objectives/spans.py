"""Spans of a text: how long, where, and what stands for them."""

import numpy as np


def compose(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Returns lengths of at least 1 with the sum `total`, uniformly over all such; int64 [parts]."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def fill(lengths: np.ndarray, total: int) -> np.ndarray:
    """Returns the first lengths up to the sum `total`, the last of them cut, or all if they are less.

    >>> fill([2, 0, 3, 4], 4)
    [2, 0, 2]
    """
    ends = np.cumsum(lengths)
    last = np.searchsorted(ends, total)
    return np.diff(np.minimum(ends[: last + 1], total), prepend=0)


def place(lengths: np.ndarray, others: int, gap: int, rng: np.random.Generator) -> np.ndarray:
    """Returns starts of the spans, ascending, uniformly over all places; int64 [spans].

    Args:
        lengths: int [spans], may be 0.
        others: tokens of the text that are in no span, at least gap * (spans - 1).
        gap: the least number of them between two spans.
        rng: numpy's.
    """
    count = len(lengths)
    number = np.arange(count)
    # With the gaps put aside, an arrangement is a choice of which items of a row are spans.
    items = others - gap * max(count - 1, 0) + count
    before = np.sort(rng.choice(items, count, replace=False)) - number + gap * number
    return before + np.cumsum(lengths) - lengths


def places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the places of all tokens of spans.

    >>> places([1, 5], [2, 3])
    [1, 2, 5, 6, 7]
    """
    first = np.cumsum(lengths) - lengths
    return np.repeat(starts - first, lengths) + np.arange(np.sum(lengths))


def replace(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, by: np.ndarray | int
) -> np.ndarray:
    """Puts one token in the place of each span; before a token, where the span has length 0.

    >>> replace([10, 11, 12, 13], starts=[1, 3], lengths=[2, 0], by=[90, 91])
    [10, 90, 91, 13]
    """
    kept = np.ones(len(tokens), bool)
    kept[places(starts, lengths)] = False
    return np.insert(tokens, starts, by)[np.insert(kept, starts, True)]
