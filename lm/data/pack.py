"""Documents into rows of equal length. Pure numpy.

A document of m stored tokens gives m targets, or m - 1 where each is predicted from the token before it
(`overlap` = 1). It is cut into windows of as many as fill a row; shorter windows share a row, kept apart by
segment ids.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.errors import InputError


class Windows(NamedTuple):
    """Parts of documents, in the order of the text. All arrays [windows].

    Attributes:
        document: int64, which document.
        start: int64, the first stored token. The window's tokens end before `start + size + overlap`.
        size: int32, number of targets.
        score_from: int32, the first target of the window that counts in the loss.
    """

    document: np.ndarray
    start: np.ndarray
    size: np.ndarray
    score_from: np.ndarray


class Rows(NamedTuple):
    """Row r holds the windows `windows[offsets[r]:offsets[r + 1]]`.

    Attributes:
        windows: int64 [windows], indices of windows; ascending within a row.
        offsets: int64 [rows + 1].
    """

    windows: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.windows[self.offsets[row] : self.offsets[row + 1]]


def windows(
    lengths: np.ndarray, length: int | np.ndarray, stride: int = 0, overlap: int = 1
) -> Windows:
    """Cuts documents into windows in which every target is scored exactly once.

    >>> windows(np.array([3, 6]), length=4)  # 2 and 5 targets
    Windows(document=[0, 1, 1], start=[0, 0, 4], size=[2, 4, 1], score_from=[0, 0, 0])
    >>> windows(np.array([3, 6]), length=4, stride=1)
    Windows(document=[0, 1, 1], start=[0, 0, 1], size=[2, 4, 4], score_from=[0, 0, 3])

    Args:
        lengths: int [documents], stored tokens of each document.
        length: the most targets in a window; int, or int [documents].
        stride: 0 for windows side by side. Else each window begins `stride` targets after the one
            before it and scores only what that one did not, so that all but a document's first
            targets are predicted from at least `length` - stride tokens.
        overlap: tokens that a window shares with the next one.

    Raises:
        InputError: the stride is larger than `length`, so that targets would be left out.
    """
    length = np.broadcast_to(length, np.shape(lengths))
    if stride > (least := length.min(initial=stride)):
        most = length.max()
        raise InputError(
            f'config.eval.stride = {stride} is more than config.data.length = {most}'
            f'{f", less codes = {least}" if least < most else ""}, so tokens between windows would not be '
            'scored.'
        )
    targets = np.maximum(np.asarray(lengths, np.int64) - overlap, 0)
    step = np.full_like(length, stride) if stride else length
    # A window beyond the first is needed for each step beyond T.
    counts = np.where(targets > 0, 1 + -(-np.maximum(targets - length, 0) // step), 0)
    document = np.repeat(np.arange(len(targets)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    length, step = length[document], step[document]
    start = number * step
    size = np.minimum(length, targets[document] - start)
    score_from = np.where(number > 0, length - step, 0)
    return Windows(document, start, size.astype(np.int32), score_from.astype(np.int32))


def rows(sizes: np.ndarray, length: int, packing: bool) -> Rows:
    """Assigns windows to rows of at most T targets.

    With packing by best-fit decreasing: from the largest window to the smallest, each goes into the
    row with the least space left that holds it (of several, the one filled last). Rows are numbered
    by their first window, so that they follow the text.

    >>> rows(np.array([4, 3, 2, 1, 2]), length=4, packing=True)
    Rows(windows=[0, 1, 3, 2, 4], offsets=[0, 1, 3, 5])

    Args:
        sizes: int [windows], 1 <= size <= T.
        length: T.
        packing: False for a row to each window.
    """
    sizes = np.asarray(sizes)
    row = np.arange(len(sizes))
    short = np.flatnonzero(sizes < length)
    if packing and len(short):
        order = short[np.argsort(-sizes[short], kind='stable')]
        row[order] = _best_fit(sizes[order], order, length)
    order = np.argsort(row, kind='stable')
    begins = np.flatnonzero(np.diff(row[order], prepend=-1))
    first = order[begins]  # The smallest window of each row: `order` is stable.
    rank = np.empty(len(sizes), np.int64)
    rank[row[first]] = np.argsort(np.argsort(first))
    row = rank[row]
    return Rows(
        np.argsort(row, kind='stable'),
        np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(first)))]),
    )


def _best_fit(sizes: np.ndarray, names: np.ndarray, length: int) -> np.ndarray:
    """Returns the row of each window, named by the window that opened it.

    Rows stand in a list for each amount of space left; bit s of `spaces` says that list s is not
    empty, so that the least space that holds a window is the lowest bit from its size on. All windows
    of a size are placed together: a row that one of them goes into is then the fullest that holds the
    next, until it holds no more.

    Args:
        sizes: int [windows], from the largest to the smallest.
        names: int64 [windows].
        length: T.
    """
    with_space: list[list[int]] = [[] for _ in range(length + 1)]
    spaces = 0
    result = np.empty_like(names)
    starts = np.flatnonzero(np.diff(sizes, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(sizes)], strict=True):
        size = int(sizes[start])
        while start < stop:
            fitting = spaces >> size
            space = size + (fitting & -fitting).bit_length() - 1 if fitting else length
            each = space // size  # Windows in a row.
            if fitting:
                needed = -(-(stop - start) // each)
                rows = with_space[space][: -needed - 1 : -1]
                del with_space[space][-needed:]
                spaces ^= (not with_space[space]) << space
            else:
                rows = names[start:stop:each].tolist()
            end = min(stop, start + each * len(rows))
            result[start:end] = np.repeat(rows, each)[: end - start]
            in_last = end - start - each * (len(rows) - 1)
            for filled, with_so_many in ((rows[:-1], each), (rows[-1:], in_last)):
                left = space - with_so_many * size
                if left and filled:
                    with_space[left] += filled
                    spaces |= 1 << left
            start = end
    return result


def assemble(
    parts: Sequence[Mapping[str, np.ndarray]], length: int, source_length: int = 0
) -> dict[str, np.ndarray]:
    """Puts the fields of several windows into one row.

    Segments are numbered from 1, positions restart at 0 in each; what is left is padding: segment 0,
    weight 0, and token 0 whatever the tokenizer's PAD is, since nothing reads it. Fields `encoder_*` have a
    length, positions and segments of their own; window i is segment i + 1 on both sides.

    >>> assemble([{'inputs': [1, 7], 'targets': [7, 2], 'loss_weights': [1., 1.]},
    ...           {'inputs': [1], 'targets': [2], 'loss_weights': [1.]}], length=4)
    {'inputs':       [1, 7, 1, 0],
     'targets':      [7, 2, 2, 0],
     'loss_weights': [1., 1., 1., 0.],
     'positions':    [0, 1, 0, 0],
     'segment_ids':  [1, 1, 2, 0]}

    Args:
        parts: the fields of each window, at least one; arrays [t] of the same keys and types, the
            sum of all t at most T; and [s] for the encoder.
        length: T.
        source_length: S.

    Returns:
        Arrays [T] and [S], in the fields' types; positions and segments are int32.
    """
    row = {}
    for prefix, size in (('', length), ('encoder_', source_length)):
        names = [n for n in parts[0] if n.startswith('encoder_') == bool(prefix)]
        if names:
            row |= _side(parts, names, prefix, size)
    return row


def _side(
    parts: Sequence[Mapping[str, np.ndarray]], names: list[str], prefix: str, length: int
) -> dict[str, np.ndarray]:
    """Returns the fields of one side, with positions and segments."""
    row = {name: np.zeros(length, parts[0][name].dtype) for name in names}
    positions, segment_ids = np.zeros(length, np.int32), np.zeros(length, np.int32)
    start = 0
    for number, part in enumerate(parts, 1):
        size = len(part[names[0]])
        here = slice(start, start + size)
        for name in names:
            row[name][here] = part[name]
        positions[here] = np.arange(size)
        segment_ids[here] = number
        start += size
    return row | {f'{prefix}positions': positions, f'{prefix}segment_ids': segment_ids}
