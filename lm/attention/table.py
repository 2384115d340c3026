"""Which blocks of queries look at which blocks of keys: the plan of block-sparse attention.

A mask of windows, global tokens and random blocks leaves most blocks of `[T, S]` empty as it stands.
`strided` and `summaries` do not: every block holds some of their pairs. Tokens are put in another order
for them, in which those pairs lie together: by residue class (tokens 0, s, 2s, ..., then 1, s+1, ...), or
the summaries alone, side by side. So a mask becomes a few disjoint parts, each with an order of its own,
and a table of the blocks that hold anything.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention.masks import EMPTY, And, Full, Mask, Not, Or, Range, Strided, Summaries

NOTHING = Not(Full())

# Tokens of a block of queries and of keys. Less is too little for a matrix product, more holds more pairs
# that the mask forbids.
QUERIES, KEYS = 128, 64
_MORE_WORK = 0.1  # For fewer programs.


# --- orders ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InPlace:
    """The order of the row, filled up to whole blocks; `start` is the place of the first token.

    Orders take arrays of numpy and of jax.
    """

    length: int
    block: int
    start: int = 0

    @property
    def padding(self) -> int:
        return -self.length % self.block

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        """Returns `x` in this order, along `axis`."""
        return _pad(x, axis, self.padding)

    def put(self, x: jax.Array, axis: int) -> jax.Array:
        """The inverse of `take`; places that are not in this order are zero."""
        return _slice(x, 0, self.length, axis)


@dataclasses.dataclass(frozen=True)
class ByResidue:
    """Tokens 0, s, 2s, ..., then 1, s + 1, ...: each class filled up to whole blocks."""

    length: int
    block: int
    stride: int
    start: int = 0

    @property
    def size(self) -> int:
        """Tokens of a class, those that fill it up included."""
        return -(-self.length // (self.stride * self.block)) * self.block

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        x = _pad(x, axis, self.size * self.stride - self.length)
        x = _split(x, axis, self.stride).swapaxes(axis, axis + 1)
        return _merge(x, axis)

    def put(self, x: jax.Array, axis: int) -> jax.Array:
        x = _merge(_split(x, axis, self.size).swapaxes(axis, axis + 1), axis)
        return _slice(x, 0, self.length, axis)


@dataclasses.dataclass(frozen=True)
class OnlySummaries:
    """The last `count` tokens of each chunk of `size`, filled up to whole blocks."""

    length: int
    block: int
    size: int
    count: int
    start: int = 0

    @property
    def chunks(self) -> int:
        return -(-self.length // self.size)

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        x = _split(_pad(x, axis, self.chunks * self.size - self.length), axis, self.size)
        x = _slice(x, self.size - self.count, self.size, axis + 1)
        return _pad(_merge(x, axis), axis, -(self.chunks * self.count) % self.block)

    def put(self, x: jax.Array, axis: int) -> jax.Array:
        x = _slice(x, 0, self.chunks * self.count, axis)
        x = _split(x, axis, self.count)
        x = _merge(_pad(x, axis + 1, self.size - self.count, before=True), axis)
        return _slice(x, 0, self.length, axis)


Order = InPlace | ByResidue | OnlySummaries


def _pad(x: jax.Array, axis: int, size: int, before: bool = False) -> jax.Array:
    if not size:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (size, 0) if before else (0, size)
    return np.pad(x, widths) if isinstance(x, np.ndarray) else jnp.pad(x, widths)


def _slice(x: jax.Array, start: int, stop: int, axis: int) -> jax.Array:
    return x[(slice(None),) * axis + (slice(start, stop),)]


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Returns `x` with `axis` cut into parts of `size`: two axes."""
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _merge(x: jax.Array, axis: int) -> jax.Array:
    """Returns `x` with `axis` and the next as one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


@functools.lru_cache(maxsize=256)
def places(order: Order) -> np.ndarray:
    """Returns int32, the place in the row of each token of an order; -1 where it is filled up."""
    found = order.take(np.arange(1, order.length + 1, dtype=np.int32), 0) - 1
    return np.where(found < 0, found, found + np.int32(order.start))


# --- parts ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Blocks of queries that look at as many blocks of keys each.

    Attributes:
        queries: int32 `[n]`, indices of blocks of queries.
        starts: int32 `[n]`, the first of `run` consecutive blocks of keys.
        others: int32 `[n, w]`, further blocks of keys; -1 is none.
        run: how many consecutive ones.
    """

    queries: np.ndarray
    starts: np.ndarray
    others: np.ndarray
    run: int

    @property
    def width(self) -> int:
        """Blocks of keys that each looks at."""
        return self.run + self.others.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some of a mask's pairs.

    Attributes:
        mask: what it allows among the pairs of its blocks.
        query: the order of queries.
        key: the order of keys.
        rows: which blocks look at which; a block of queries is in one of them at most.
    """

    mask: Mask
    query: Order
    key: Order
    rows: tuple[Rows, ...]

    @property
    def pairs(self) -> int:
        """Pairs that are computed, allowed or not."""
        blocks = sum(len(rows.queries) * rows.width for rows in self.rows)
        return blocks * self.query.block * self.key.block


@functools.lru_cache(maxsize=256)
def plan(mask: Mask, length: int, source: int, start: int = 0) -> tuple[Part, ...]:
    """Returns disjoint parts that together are the mask.

    Args:
        mask: who may attend to whom.
        length: T, queries, at places `start`, `start + 1`, ...
        source: S, keys, at places 0, 1, ...
        start: the place of the first query.
    """
    ordered = [a for a in dict.fromkeys(positive_atoms(mask)) if _has_order(a, start)]
    ordered = [a for a in ordered if a not in _negative_atoms(mask)]
    base = mask
    for atom in ordered:
        base = replace(base, atom, NOTHING)
    in_place = InPlace(length, QUERIES, start)
    parts = [_part(base, in_place, InPlace(source, KEYS))]
    done = base
    for atom in ordered:
        rest = replace(mask, atom, Full())
        rest = rest if done == NOTHING else rest & ~done
        match atom:
            case Strided(stride):
                # Blocks no larger than a class, or most of each would be filled up.
                most = 1 << max(-(-max(length, source) // stride) - 1, 1).bit_length()
                parts.append(
                    _part(
                        rest,
                        ByResidue(length, min(QUERIES, most), stride, start),
                        ByResidue(source, min(KEYS, most), stride),
                    )
                )
            case Summaries(size, count):
                order = OnlySummaries(source, KEYS, size, count)
                parts.append(_part(rest, in_place, order))
        done = done | atom if done != NOTHING else atom
    return tuple(part for part in parts if part.rows)


def _has_order(atom: Mask, start: int) -> bool:
    """Whether tokens have an order in which the atom's pairs lie together."""
    if isinstance(atom, Strided):  # Classes of queries are those of keys.
        return start % atom.stride == 0
    return isinstance(atom, Summaries)


def replace(mask: Mask, old: Mask, new: Mask) -> Mask:
    """Returns the mask with an atom replaced by `full` or `~full`, and simplified."""
    match mask:
        case And(parts):
            parts = [m for m in (replace(m, old, new) for m in parts) if m != Full()]
            if NOTHING in parts:
                return NOTHING
            return functools.reduce(lambda a, b: a & b, parts) if parts else Full()
        case Or(parts):
            parts = [m for m in (replace(m, old, new) for m in parts) if m != NOTHING]
            if Full() in parts:
                return Full()
            return functools.reduce(lambda a, b: a | b, parts) if parts else NOTHING
        case Not(inner):
            return ~replace(inner, old, new)
    return new if mask == old else mask


def atoms(mask: Mask) -> Iterator[Mask]:
    """Yields what a mask is made of."""
    match mask:
        case And(parts) | Or(parts):
            for part in parts:
                yield from atoms(part)
        case Not(inner):
            yield from atoms(inner)
        case _:
            yield mask


def holds(mask: Mask, kind: type) -> bool:
    """Whether a mask is made of, among others, one of a kind."""
    return any(isinstance(atom, kind) for atom in atoms(mask))


def positive_atoms(mask: Mask) -> Iterator[Mask]:
    """Yields the atoms of a mask that stand below no negation."""
    match mask:
        case And(parts) | Or(parts):
            for part in parts:
                yield from positive_atoms(part)
        case Not():
            return
        case _:
            yield mask


def _negative_atoms(mask: Mask) -> set[Mask]:
    """Atoms below a negation. (Where one is below two, it is taken for negative as well.)"""
    match mask:
        case And(parts) | Or(parts):
            return set().union(*map(_negative_atoms, parts))
        case Not(inner):
            return set(atoms(inner))
    return set()


def _part(mask: Mask, query: Order, key: Order) -> Part:
    classes = table(mask, query, key)
    # A run of blocks must not leave its residue class: nothing else keeps classes apart.
    together = key.size // key.block if isinstance(key, ByResidue) else classes.shape[1]
    return Part(mask, query, key, tuple(_rows(classes, together)))


def table(mask: Mask, query: Order, key: Order) -> np.ndarray:
    """Returns int8 `[blocks of queries, blocks of keys]`: EMPTY, PARTIAL or FULL.

    Args:
        mask: who may attend to whom.
        query: the order of queries.
        key: the order of keys.
    """
    q, q_there = _ranges(query)
    k, k_there = _ranges(key)
    classes = mask.classify(Range(q.low[:, None], q.high[:, None]), k)
    there = q_there[:, None] & k_there
    if isinstance(query, ByResidue):
        # Blocks of different classes have nothing to do with each other.
        there &= q.low[:, None] % query.stride == k.low % key.stride
    return np.where(there, classes, EMPTY)


def _ranges(order: Order) -> tuple[Range, np.ndarray]:
    """Returns the least and the greatest place of each block, and bool: is there any?"""
    blocks = places(order).reshape(-1, order.block)
    there = blocks >= 0
    low = np.where(there, blocks, np.iinfo(np.int32).max).min(axis=1)
    some = there.any(axis=1)
    high = blocks.max(axis=1)
    return Range(np.where(some, low, 0), np.where(some, high, 0)), some


def _rows(classes: np.ndarray, together: int) -> Iterator[Rows]:
    """Yields the rows of a table, those of like size together.

    Args:
        classes: int8 `[blocks of queries, blocks of keys]`.
        together: a run of blocks of keys lies within the first so many, or the next, ...
    """
    found: dict[tuple[int, int], list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for i, row in enumerate(classes != EMPTY):
        seen = np.flatnonzero(row)
        if len(seen):
            runs = np.split(seen, np.flatnonzero(np.diff(seen) > 1) + 1)
            longest = max(runs, key=len)
            run = min(_round_up(len(longest)), together)
            size = run, _round_up(len(seen) - len(longest))
            found.setdefault(size, []).append((i, seen, longest))
    for (run, width), rows in sorted(_fewer(found).items()):
        starts, others = [], []
        for _, seen, longest in rows:
            first = longest[0] // together * together
            start = min(max(longest[-1] + 1 - run, first), first + together - run)
            rest = [k for k in seen if not start <= k < start + run]
            starts.append(start)
            others.append(rest + [-1] * (width - len(rest)))
        yield Rows(
            np.array([i for i, *_ in rows], np.int32),
            np.array(starts, np.int32),
            np.array(others, np.int32).reshape(len(rows), width),
            run,
        )


def _fewer(groups: dict[tuple[int, int], list]) -> dict[tuple[int, int], list]:
    """Returns rows by size, with sizes put together where that adds little work: each is a program.


    Args:
        groups: rows by how many consecutive blocks they look at, and how many others.
    """
    groups = dict(groups)
    spare = _MORE_WORK * sum((run + width) * len(rows) for (run, width), rows in groups.items())
    while len(groups) > 1:
        added, a, b = min(
            (sum(len(groups[g]) * (sum(map(max, a, b)) - sum(g)) for g in (a, b)), a, b)
            for a, b in itertools.combinations(groups, 2)
        )
        spare -= added
        if spare < 0:
            break
        together = groups.pop(a) + groups.pop(b)
        groups.setdefault((max(a[0], b[0]), max(a[1], b[1])), []).extend(together)
    return groups


def _round_up(count: int) -> int:
    """Returns the next of few sizes: all up to 8, then four to an octave."""
    if count <= 8:
        return count
    step = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step
