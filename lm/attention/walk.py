"""Which blocks of pairs a kernel goes through, told by lists that are made of a mask.

A kernel keeps a tile of queries and lets blocks of keys stream past it, or the other way round. For each
tile there is a list of the blocks that hold anything: first those that are full, which need no mask, then
the others.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from lm.attention.masks import EMPTY, FULL, PARTIAL, Mask, RandomBlocks, Range
from lm.attention.table import InPlace, atoms, replace, table

# An entry of a list is a block's number, and in its upper bits what was drawn there (`Drawn`).
NUMBER_BITS = 20
CELL = 64  # Tokens of a side of the squares in which all pairs or none are drawn.


class Walk(NamedTuple):
    """Which blocks stream past each tile.

    Attributes:
        tiles: int32 `[n, 4]`, the longest first, so that no long one is left for the end: the tile's
            number, its first entry in `blocks`, the first one that is partial, and the end.
        blocks: int32 `[m]`, entries.
    """

    tiles: np.ndarray
    blocks: np.ndarray


@functools.lru_cache(maxsize=256)
def walk(mask: Mask, length: int, source: int, sizes: tuple[int, int], columns: bool) -> Walk:
    """Returns what the tiles of a mask walk over.

    Args:
        mask: who may attend to whom.
        length: T, queries.
        source: S, keys.
        sizes: tokens of a block of queries, and of keys; multiples of `CELL`.
        columns: tiles are of keys, not of queries.
    """
    classes = table(mask, InPlace(length, sizes[0]), InPlace(source, sizes[1]))
    if source % sizes[1]:  # Keys that fill the last block up are for the mask to forbid.
        classes[:, -1] = np.minimum(classes[:, -1], PARTIAL)
    drawn = _drawn(mask, classes.shape, sizes, columns) << NUMBER_BITS
    tiles, blocks = [], []
    for i, row in enumerate(classes.T if columns else classes):
        full, partial = np.flatnonzero(row == FULL), np.flatnonzero(row == PARTIAL)
        first = len(blocks)
        blocks += [*full, *(partial + drawn[i, partial])]
        tiles.append((i, first, first + len(full), len(blocks)))
    tiles.sort(key=lambda tile: tile[1] - tile[3])
    return Walk(np.array(tiles, np.int32), np.array(blocks or [0], np.int32))


def pairs(mask: Mask, length: int, source: int, sizes: tuple[int, int]) -> int:
    """Returns how many pairs are in blocks that hold anything."""
    classes = table(mask, InPlace(length, sizes[0]), InPlace(source, sizes[1]))
    return int(np.count_nonzero(classes != EMPTY)) * sizes[0] * sizes[1]


# --- random blocks --------------------------------------------------------------------------------
#
# What is drawn of random blocks takes a hash to find out, so it is not asked about each pair: in a square
# of 64 tokens all pairs are drawn or none, and an entry says which, with one bit a square.


class Told(NamedTuple):
    """As `Known`, and what was drawn.

    Attributes:
        same_segment: of `Known`.
        in_prefix: of `Known`.
        drawn: bool, one a `Drawn` mask, of the shape of the pairs.
    """

    same_segment: Any = None
    in_prefix: Any = None
    drawn: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Drawn(Mask):
    """Random blocks of which an entry tells what was drawn.

    Attributes:
        index: which of them, where a mask has several.
    """

    index: int

    def allows(self, q_positions, k_positions, known: Told):
        return known.drawn[self.index]


def told(mask: Mask) -> Mask:
    """Returns the mask, with `Drawn` for the random blocks of which entries tell."""
    for i, atom in enumerate(_random_blocks(mask)):
        mask = replace(mask, atom, Drawn(i))
    return mask


def count(mask: Mask) -> int:
    """Returns how many random blocks of a mask entries tell of."""
    return len(_random_blocks(mask))


def _random_blocks(mask: Mask) -> list[RandomBlocks]:
    """The random blocks of a mask that fit squares; two, for which an entry has bits."""
    found = dict.fromkeys(a for a in atoms(mask) if isinstance(a, RandomBlocks))
    return [atom for atom in found if atom.size % CELL == 0][:2]


def _drawn(mask: Mask, shape: tuple[int, int], sizes: tuple[int, int], columns: bool) -> np.ndarray:
    """Returns int `[tiles, blocks]`: a bit for each square of a block, and for each of the random blocks.

    Bits count along what streams past first, then along the tile, then from mask to mask.
    """
    bits = np.zeros(shape[::-1] if columns else shape, int)
    squares = sizes[0] // CELL, sizes[1] // CELL
    for i, atom in enumerate(_random_blocks(mask)):
        q, k = (CELL * np.arange(n * each) for n, each in zip(shape, squares, strict=True))
        q, k = q[:, None], k[None, :]
        seen = atom.classify(Range(q, q + CELL - 1), Range(k, k + CELL - 1)) == FULL
        seen = seen.reshape(shape[0], squares[0], shape[1], squares[1])
        seen = seen.transpose(2, 3, 0, 1) if columns else seen
        _, high, _, low = seen.shape
        weights = 1 << (np.arange(high * low).reshape(high, 1, low) + i * high * low)
        bits += (seen * weights).sum((1, 3))
    return bits
