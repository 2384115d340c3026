"""Who may attend to whom: a small language of frozen descriptions, the same in Python and in a config.

    mask = causal & (window(256) | global_tokens(4))
    mask == parse('causal & (window(256) | global_tokens(4))')
    mask.allows(np.arange(8)[:, None], np.arange(8))        # bool [8, 8]

A mask is hashable, so it can be a static argument of jit. It answers three questions, and none of them
needs an array of all pairs:

- `allows`: may these queries see those keys? For numpy, jax, and inside kernels.
- `classify`: does a block of pairs hold none, some or only allowed ones? By interval arithmetic, so that
  the table of blocks of 65,536 tokens takes milliseconds. This is what makes cost follow the mask.
- `reach`: which earlier keys may still be seen? This bounds the cache in decoding.

`&`, `|` and `~` combine masks; names and arguments are in `MASKS`, ready-made ones in `PRESETS`.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import numpy as np

from lm.errors import InputError

Array = TypeVar('Array', np.ndarray, jax.Array)

EMPTY, PARTIAL, FULL = np.int8(0), np.int8(1), np.int8(2)


class Range(NamedTuple):
    """Places from `low` to `high`, both included; int arrays, one entry a block."""

    low: np.ndarray
    high: np.ndarray


class Known(NamedTuple):
    """What is known of tokens besides their places; None where it is not.

    Attributes:
        same_segment: bool, broadcastable to `[..., T, S]`: are the two of one document?
        in_prefix: bool, broadcastable to `[..., T, S]`: does the key belong to its document's prefix?
    """

    same_segment: Any = None
    in_prefix: Any = None


class Reach(NamedTuple):
    """The earlier keys that a query, or any after it, may see: so many first ones, and so many last ones.

    Attributes:
        recent: tokens, the query's own included; infinite where there is no limit.
        pinned: tokens at the start of the row.
    """

    recent: float
    pinned: int = 0


NOTHING_KNOWN = Known()
EVERYTHING = Reach(math.inf)


class Mask:
    """What every mask can do."""

    def allows(self, q_positions: Array, k_positions: Array, known: Known = NOTHING_KNOWN) -> Array:
        """Returns bool: may the query at a place see the key at a place?

        Args:
            q_positions: int, places of queries in the row; numpy or jax.
            k_positions: int, places of keys. The two broadcast against each other, so that
                `allows(q[:, None], k[None, :])` is the `[T, S]` mask.
            known: what else is known of the tokens.
        """
        raise NotImplementedError

    def classify(self, query: Range, key: Range) -> np.ndarray:
        """Returns EMPTY, PARTIAL or FULL for blocks of queries and keys, int8.

        EMPTY and FULL are certain. PARTIAL may be either, where masks are combined.

        Args:
            query: places of the queries of each block.
            key: of its keys. The two broadcast: `[n, 1]` and `[m]` give the `[n, m]` table.
        """
        raise NotImplementedError

    def reach(self) -> Reach:
        """Returns which earlier keys have to be kept in decoding. Those after a query do not count."""
        return EVERYTHING

    @property
    def is_causal(self) -> bool:
        """Whether it is certain that no query sees a later key."""
        return False

    @property
    def is_shift_invariant(self) -> bool:
        """Whether only distances count: a document sees the same wherever in a row it lies."""
        return False

    @property
    def may_pack(self) -> bool:
        """Whether rows may hold several documents."""
        return self.is_shift_invariant

    def __and__(self, other: 'Mask') -> 'Mask':
        return _combined(And, self, other)

    def __or__(self, other: 'Mask') -> 'Mask':
        return _combined(Or, self, other)

    def __invert__(self) -> 'Mask':
        return self.mask if isinstance(self, Not) else Not(self)


def _combined(kind: type, *masks: Mask) -> Mask:
    """Returns `kind` of masks, each of them once."""
    parts = (part for m in masks for part in (m.masks if isinstance(m, kind) else (m,)))
    once = tuple(dict.fromkeys(parts))
    return kind(once) if len(once) > 1 else once[0]


def _table(empty: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Returns the classes of blocks that are known to be empty, or full."""
    return np.where(empty, EMPTY, np.where(full, FULL, PARTIAL))


# --- combinations ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Several(Mask):
    """What is made of several masks."""

    masks: tuple[Mask, ...]

    @property
    def is_causal(self):
        return all(m.is_causal for m in self.masks)

    @property
    def is_shift_invariant(self):
        return all(m.is_shift_invariant for m in self.masks)


@dataclasses.dataclass(frozen=True)
class And(_Several):
    """What all of them allow: `a & b`."""

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        parts = (m.allows(q_positions, k_positions, known) for m in self.masks)
        return functools.reduce(operator.and_, parts)

    def classify(self, query, key):
        return functools.reduce(np.minimum, (m.classify(query, key) for m in self.masks))

    def reach(self):
        return min((m.reach() for m in self.masks), key=sum)

    @property
    def is_causal(self):
        return any(m.is_causal for m in self.masks)

    def __str__(self):
        return ' & '.join(f'({m})' if isinstance(m, Or) else str(m) for m in self.masks)


@dataclasses.dataclass(frozen=True)
class Or(_Several):
    """What one of them allows: `a | b`."""

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        parts = (m.allows(q_positions, k_positions, known) for m in self.masks)
        return functools.reduce(operator.or_, parts)

    def classify(self, query, key):
        return functools.reduce(np.maximum, (m.classify(query, key) for m in self.masks))

    def reach(self):
        each = [m.reach() for m in self.masks]
        return Reach(max(r.recent for r in each), max(r.pinned for r in each))

    def __str__(self):
        return ' | '.join(map(str, self.masks))


@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """What it does not allow: `~a`."""

    mask: Mask

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        return ~self.mask.allows(q_positions, k_positions, known)

    def classify(self, query, key):
        return FULL - self.mask.classify(query, key)

    @property
    def is_shift_invariant(self):
        return self.mask.is_shift_invariant

    def __str__(self):
        return f'~({self.mask})' if isinstance(self.mask, And | Or) else f'~{self.mask}'


# --- arithmetic -----------------------------------------------------------------------------------


def quotient(x: Array, size: int) -> Array:
    """Returns `x // size` of places, which are not negative, in few operations that TPUs have as well."""
    if size & (size - 1) == 0:
        return x >> (size.bit_length() - 1)
    return jax.lax.div(x, size) if isinstance(x, jax.Array) else x // size


def remainder(x: Array, size: int) -> Array:
    """Returns `x % size` of places. Of a negative number, only whether it is 0 is certain."""
    return x & (size - 1) if size & (size - 1) == 0 else x - quotient(x, size) * size


# --- atoms ----------------------------------------------------------------------------------------


class _Atom(Mask):
    """A mask of a name and numbers, all of them at least 1 but for a seed."""

    is_shift_invariant: ClassVar[bool] = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == 'seed' else 1
            if type(value) is not int or value < least:
                raise InputError(f'{self}: {field.name} must be an integer of at least {least}.')

    def __str__(self):
        values = [getattr(self, f.name) for f in dataclasses.fields(self)]
        name = next(name for name, mask in MASKS.items() if mask is type(self) or mask == self)
        return f'{name}({", ".join(map(str, values))})' if values else name


@dataclasses.dataclass(frozen=True)
class Causal(_Atom):
    """A token sees itself and all before it.

    `Causal().allows(np.arange(3)[:, None], np.arange(3))` is
    `[[1, 0, 0], [1, 1, 0], [1, 1, 1]]`.
    """

    is_shift_invariant: ClassVar[bool] = True

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        return k_positions <= q_positions

    def classify(self, query, key):
        return _table(query.high < key.low, query.low >= key.high)

    @property
    def is_causal(self):
        return True


@dataclasses.dataclass(frozen=True)
class Full(_Atom):
    """Every token sees every token."""

    is_shift_invariant: ClassVar[bool] = True

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        # True everywhere, in the shape and library (numpy or jax) of the two together.
        return (q_positions == q_positions) & (k_positions == k_positions)

    def classify(self, query, key):
        return np.full(np.broadcast_shapes(query.low.shape, key.low.shape), FULL)


@dataclasses.dataclass(frozen=True)
class Segments(_Atom):
    """Tokens of one document see each other.

    Where rows are packed every mask keeps documents apart, so that this is needed only in a negation or
    an alternative. Without packing it allows everything.
    """

    is_shift_invariant: ClassVar[bool] = True

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        everything = Full().allows(q_positions, k_positions)
        return everything if known.same_segment is None else everything & known.same_segment

    def classify(self, query, key):
        return np.full(np.broadcast_shapes(query.low.shape, key.low.shape), PARTIAL)


@dataclasses.dataclass(frozen=True)
class Prefix(_Atom):
    """All see the prefix of their document, as in `causal | prefix` (Raffel et al. 2020).

    What is a prefix differs from row to row, and comes with the batch. Without that there is none.
    """

    is_shift_invariant: ClassVar[bool] = True

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        everything = Full().allows(q_positions, k_positions)
        return ~everything if known.in_prefix is None else everything & known.in_prefix

    def classify(self, query, key):
        return np.full(np.broadcast_shapes(query.low.shape, key.low.shape), PARTIAL)


@dataclasses.dataclass(frozen=True)
class Window(_Atom):
    """A token sees those less than `width` away: with `causal`, `width` tokens, its own included.

    Beltagy et al. 2020 (https://arxiv.org/abs/2004.05150) count both sides: theirs of 512 is
    `window(257)`. Jiang et al. 2023 (Mistral) count as here.
    """

    is_shift_invariant: ClassVar[bool] = True

    width: int

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        distance = q_positions - k_positions
        return (distance < self.width) & (distance > -self.width)

    def classify(self, query, key):
        low, high = query.low - key.high, query.high - key.low
        outside = (low >= self.width) | (high <= -self.width)
        return _table(outside, (high < self.width) & (low > -self.width))

    def reach(self):
        return Reach(self.width)


@dataclasses.dataclass(frozen=True)
class Strided(_Atom):
    """A token sees every `stride`-th one, counted from itself (Child et al. 2019, Sparse Transformers).

    https://arxiv.org/abs/1904.10509, section 4.2: their pattern is `causal & (window(s) | strided(s))`.
    """

    is_shift_invariant: ClassVar[bool] = True

    stride: int

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        return remainder(q_positions - k_positions, self.stride) == 0

    def classify(self, query, key):
        low, high = query.low - key.high, query.high - key.low
        multiples = high // self.stride + -low // self.stride + 1  # between the two
        return _table(multiples == 0, multiples == high - low + 1)


@dataclasses.dataclass(frozen=True)
class Chunks(_Atom):
    """Tokens see each other in chunks of `size`, which lie side by side from place 0."""

    size: int

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        return quotient(q_positions, self.size) == quotient(k_positions, self.size)

    def classify(self, query, key):
        first_q, last_q = query.low // self.size, query.high // self.size
        first_k, last_k = key.low // self.size, key.high // self.size
        one = (first_q == last_q) & (first_k == last_k) & (first_q == first_k)
        return _table((last_q < first_k) | (last_k < first_q), one)

    def reach(self):
        return Reach(self.size)


@dataclasses.dataclass(frozen=True)
class Summaries(_Atom):
    """All see the last `count` tokens of each chunk of `size`: the second head of `fixed`."""

    size: int
    count: int

    def __post_init__(self):
        super().__post_init__()
        if self.count > self.size:
            raise InputError(f'{self}: count must be at most size, {self.size}.')

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        summary = remainder(k_positions, self.size) >= self.size - self.count
        return (q_positions == q_positions) & summary

    def classify(self, query, key):
        first = self.size - self.count
        together = key.low // self.size == key.high // self.size
        none = together & (key.high % self.size < first)
        every = together & (key.low % self.size >= first)
        every |= self.count == self.size
        shape = np.broadcast_shapes(query.low.shape, key.low.shape)
        return np.broadcast_to(_table(none, every), shape)


@dataclasses.dataclass(frozen=True)
class GlobalTokens(_Atom):
    """The first `count` tokens see all, and all see them (Beltagy et al. 2020, Longformer)."""

    count: int

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        return (q_positions < self.count) | (k_positions < self.count)

    def classify(self, query, key):
        outside = (query.low >= self.count) & (key.low >= self.count)
        return _table(outside, (query.high < self.count) | (key.high < self.count))

    def reach(self):
        return Reach(0, self.count)


@dataclasses.dataclass(frozen=True)
class RandomBlocks(_Atom):
    """Each block of tokens sees `count` random earlier blocks, and they see it (Zaheer et al. 2020).

    https://arxiv.org/abs/2007.14062 (BigBird). The blocks before a block are cut into `count` equal
    stretches, and one block is drawn from each, so that no two are the same. What is drawn does not
    depend on the length of the row: a row sees the same when it grows, as in decoding.

    Attributes:
        count: blocks drawn for each block.
        seed: of the draw. Layers of different seeds see different blocks.
        size: tokens of a block.
    """

    count: int
    seed: int = 0
    size: int = 64

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        query, key = quotient(q_positions, self.size), quotient(k_positions, self.size)
        seen = self._drawn(query, key) | self._drawn(key, query)
        return seen & (q_positions == q_positions)  # where both are scalars of Python, too

    def classify(self, query, key):
        first_q, last_q = query.low // self.size, query.high // self.size
        first_k, last_k = key.low // self.size, key.high // self.size
        seen = self._drawn_from(first_q, last_q, first_k, last_k)
        seen |= self._drawn_from(first_k, last_k, first_q, last_q)
        return _table(~seen, seen & (first_q == last_q) & (first_k == last_k))

    def _drawn(self, later, earlier):
        """Whether `earlier` is one of the blocks drawn for `later`."""
        return functools.reduce(
            lambda a, b: a | b, (self._draw(later, i) == earlier for i in range(self.count))
        )

    def _drawn_from(self, first, last, low, high):
        """Whether a block from `low` to `high` is drawn for one from `first` to `last`."""
        seen = np.zeros(np.broadcast_shapes(first.shape, low.shape), bool)
        for step in range(int(np.max(last - first)) + 1):
            later = np.minimum(first + step, last)
            for i in range(self.count):
                drawn = self._draw(later, i)
                seen |= (low <= drawn) & (drawn <= high)
        return seen

    def _draw(self, block, number):
        """Returns the block drawn from stretch `number` of those before `block`; -1 where it is empty."""
        start = block * number // self.count
        size = block * (number + 1) // self.count - start
        with np.errstate(over='ignore'):
            bits = _scramble(
                (block * self.count + number).astype('uint32') ^ _scramble_int(self.seed)
            )
        drawn = start + (bits >> 8).astype('int32') % _at_least_one(size)
        return drawn * (size > 0) - (size <= 0)


def _at_least_one(x):
    return x + (x < 1) * (1 - x)


def _scramble(x):
    """A hash of uint32, for numpy and jax alike (Ettinger's lowbias32)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _scramble_int(x: int) -> np.uint32:
    return _scramble(np.array([x & 0xFFFFFFFF], 'uint32') + np.uint32(0x9E3779B9))[0]


# --- one mask a head ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Heads(_Several):
    """Masks for equal parts of the heads, in order: `heads(causal, causal & window(64))`.

    `lm.attention.attend` takes it apart; by itself it says nothing of pairs.
    """

    def reach(self):
        return Or(self.masks).reach()

    def __str__(self):
        return f'heads({", ".join(map(str, self.masks))})'


causal, full, segments, prefix = Causal(), Full(), Segments(), Prefix()
window, strided, chunks, global_tokens = Window, Strided, Chunks, GlobalTokens
summaries, random_blocks = Summaries, RandomBlocks


def heads(*masks: Mask) -> Heads:
    """Returns a mask for each of as many equal parts of the heads."""
    return Heads(masks)


# Each by its name in a config: a mask, or what makes one of numbers.
MASKS: dict[str, Mask | Callable[..., Mask]] = {
    'causal': causal,
    'full': full,
    'segments': segments,
    'prefix': prefix,
    'window': window,
    'strided': strided,
    'chunks': chunks,
    'summaries': summaries,
    'global_tokens': global_tokens,
    'random_blocks': random_blocks,
}


# --- ready-made -----------------------------------------------------------------------------------


def fixed(size: int, count: int) -> Mask:
    """Chunks, and the last `count` tokens of each (Child et al. 2019): both heads of their `fixed`."""
    return Chunks(size) | Summaries(size, count)


def local(width: int = 256) -> Mask:
    """A window on both sides."""
    return Window(width)


def longformer(width: int = 256, count: int = 1) -> Mask:
    """A window on both sides, and global tokens (Beltagy et al. 2020)."""
    return Window(width) | GlobalTokens(count)


def bigbird(width: int = 192, count: int = 64, blocks: int = 3, seed: int = 0) -> Mask:
    """A window on both sides, global tokens and random blocks of 64 (Zaheer et al. 2020, appendix E)."""
    return Window(width) | GlobalTokens(count) | RandomBlocks(blocks, seed)


def sparse_transformer_strided(stride: int = 128) -> Mask:
    """The last `stride` tokens, and every `stride`-th (Child et al. 2019, for images and music)."""
    return causal & (Window(stride) | Strided(stride))


def sparse_transformer_fixed(size: int = 128, count: int = 8) -> Mask:
    """The chunk so far, and the last `count` tokens of earlier ones (Child et al. 2019, for text)."""
    return causal & fixed(size, count)


def gpt3(width: int = 256) -> tuple[Mask, ...]:
    """Layers that see everything and layers that see a window, in turn (Brown et al. 2020)."""
    return causal, causal & Window(width)


PRESETS: dict[str, Callable[..., Mask | tuple[Mask, ...]]] = {
    'fixed': fixed,
    'local': local,
    'longformer': longformer,
    'bigbird': bigbird,
    'sparse_transformer_strided': sparse_transformer_strided,
    'sparse_transformer_fixed': sparse_transformer_fixed,
    'gpt3': gpt3,
}
