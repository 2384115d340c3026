"""Pairs of texts, such as a sentence and its translation: two files side by side, or columns of one.

Pairs come as a stream of documents: 2i and 2i + 1 are the two sides of pair i. Both must hold text, and
they must belong together, which the lengths of translations show (see `slip`).
"""

import itertools
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.slices import Document
from lm.errors import InputError

_BRACES = re.compile(r'([^{}]*)\{([^{},]+),([^{},]+)\}([^{}]*)')

# Of `slip`: lines that the sides are tried apart; pairs on each side that the trend is taken from; the
# correlation that is looked for; how many nats of evidence are asked for, and of how many pairs.
_FARTHEST = 16
_AROUND = 50
_CORRELATION = 0.5
_EVIDENCE = 40.0
_FEWEST = 100


class Pair(NamedTuple):
    """The line that a pair stands on, from 1, and its sides; None where a file has no such line."""

    line: int
    source: Document | None
    target: Document | None


def is_pair(where: str) -> bool:
    """Are two files meant: `PATH.{en,de}` or `A,B`?"""
    return '{' in where or ',' in where


def sides(where: str, place: str) -> tuple[str, str]:
    """Returns the two files of `PATH.{en,de}`, or of `A,B`.

    >>> sides('corpus/train.{en,de}.gz', ...)
    ('corpus/train.en.gz', 'corpus/train.de.gz')

    Raises:
        InputError: it has another form.
    """
    braces = _BRACES.fullmatch(where)
    if braces:
        before, first, second, after = braces.groups()
        return before + first + after, before + second + after
    files = where.split(',')
    if len(files) != 2 or '{' in where or not all(files):
        raise InputError(f'{place} does not name two files; write PATH.{{en,de}}, or A,B.')
    return files[0], files[1]


def side_by_side(sources: Iterable[Document], targets: Iterable[Document]) -> Iterator[Pair]:
    """Yields line after line of two files, to the end of the longer one."""
    for line, (source, target) in enumerate(itertools.zip_longest(sources, targets), 1):
        yield Pair(line, source, target)


def checked(pairs: Iterable[Pair], names: tuple[str, str], place: str) -> Iterator[Document]:
    """Yields both documents of each pair; what does not pair stops it, at its place or at the end.

    Args:
        pairs: in the order of the file.
        names: what messages call the two sides, such as `'train.en'`.
        place: what they call the source.

    Raises:
        InputError: a side is empty or missing, or the lengths show that the sides have slipped.
    """
    # Numbers only, since there may be many million pairs.
    lines, keys, lengths = array('i'), (array('q'), array('q')), (array('i'), array('i'))
    pairs = iter(pairs)
    alone = None
    for pair in pairs:
        if pair.source is None or pair.target is None:
            alone = pair
            break
        lines.append(pair.line)
        for side, document in enumerate(pair[1:]):
            if not document.text.strip():
                raise InputError(
                    f'{place}: line {pair.line} of {names[side]} is empty; both sides of a pair must '
                    'hold text.'
                )
            lengths[side].append(len(document.text))
            keys[side].append(hash(document.text))
            yield document
    found = slip([np.asarray(x) for x in lengths], [np.asarray(x) for x in keys])
    if alone is not None:
        raise InputError(
            f'{place}: {_unequal(alone, sum(1 for _ in pairs), names)}'
            + (f' Their lengths part at about line {lines[found[0]]:,}.' if found else '')
        )
    if found:
        start, shift = found
        raise InputError(
            f'{place}: from about line {lines[start]:,} on, the lengths in {names[0]} fit those in '
            f'{names[1]} {abs(shift)} further {"down" if shift > 0 else "up"}: one side lacks a line '
            'near there, or has one too many.'
        )


def _unequal(alone: Pair, more: int, names: tuple[str, str]) -> str:
    """Says which file is longer; `more` lines follow the first one that only it has."""
    longer = 0 if alone.target is None else 1
    return (
        f'{names[longer]} has {alone.line + more:,} lines and {names[1 - longer]} has '
        f'{alone.line - 1:,}; line {alone.line:,} is in {names[longer]} only.'
    )


def slip(lengths: Sequence[np.ndarray], keys: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Finds where two sides have slipped against each other, as where one file lost a line.

    The lengths of a text and of its translation correlate (Gale and Church 1993); those of texts that have
    nothing to do with each other do not. Let x_i and y_i be the logarithms of the lengths, less their means
    over the 50 pairs before and after, standardized, and g(x, y) = log p(x, y) / p(x) p(y) of a normal
    distribution with correlation 0.5. The evidence for a shift s at pair i is
    g(x_i, y_{i+s}) - max(g(x_i, y_i), 0): that text i goes with text i + s, rather than with the one beside
    it or with none. The sides have slipped where a run of at least 100 pairs has 40 nats of it for one of
    the shifts -16 .. 16 (Page 1954). With normal lengths that happens by chance in less than 1 of 10^9
    files of a million pairs; of the aligned files of Multi30k and Tatoeba (en-zh) none has more than 10.

    Lengths that do not correlate, such as those of questions and answers, are no evidence, and neither are
    equal texts, such as the lines of a dialogue that are answers first and then questions. What is not
    found: a slip in the last hundred pairs, by more than 16 lines, or in a file sorted by length.

    Args:
        lengths: of the texts of each side in characters, int [pairs] each.
        keys: equal where texts are, int [pairs] each.

    Returns:
        (i, s): from about pair i on, text i of the first side goes with text i + s of the second; the run
        that shows itself first. None where there is none.
    """
    count = len(lengths[0])
    if count < _FEWEST:
        return None
    x, y = (_standardized(_without_trend(np.log1p(side))) for side in lengths)
    beside = np.maximum(_gain(x, y), 0)
    first = None
    for shift in (s for d in range(1, _FARTHEST + 1) for s in (d, -d)):
        here = slice(max(-shift, 0), count - max(shift, 0))
        there = slice(max(shift, 0), count - max(-shift, 0))
        evidence = _gain(x[here], y[there]) - beside[here]
        evidence[keys[0][here] == keys[1][there]] = 0
        run = _first_run(evidence)
        if run and (first is None or run[1] + here.start < first[0]):
            first = run[1] + here.start, run[0] + here.start, shift
    return first and first[1:]


def _first_run(evidence: np.ndarray) -> tuple[int, int] | None:
    """Returns where the first run with enough evidence begins, and where it has enough."""
    total = np.concatenate([[0.0], np.cumsum(evidence)])
    lowest = np.minimum.accumulate(total)
    places = np.arange(len(total))
    begin = np.maximum.accumulate(np.where(total == lowest, places, 0))
    enough = (total - lowest > _EVIDENCE) & (places - begin >= _FEWEST)
    if not enough.any():
        return None
    end = int(np.argmax(enough))
    return int(begin[end]), end


def _without_trend(values: np.ndarray) -> np.ndarray:
    """Returns values less the mean of those around each, since neighbours in a sorted file are alike."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low = np.maximum(places - _AROUND, 0)
    high = np.minimum(places + _AROUND + 1, len(values))
    return values - (sums[high] - sums[low]) / (high - low)


def _standardized(values: np.ndarray) -> np.ndarray:
    """Returns values with mean 0 and deviation 1; outliers, which would count for too much, are cut."""
    return np.clip((values - values.mean()) / (values.std() or 1), -3, 3)


def _gain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns log p(x, y) / p(x) p(y), nats, of the standard normal distribution with `_CORRELATION`."""
    r = _CORRELATION
    return (2 * r * x * y - r**2 * (x**2 + y**2)) / (2 * (1 - r**2)) - np.log(1 - r**2) / 2
