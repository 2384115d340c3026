"""The parts of a mask as the TPU kernel wants them: orders, sizes of blocks, and tables of blocks.

The kernel (`lm/attention/splash.py`) goes through the blocks that a table names, as many for each row as
for the longest, and computes the mask of a block from the places of queries and the indices of keys.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention import table
from lm.attention.block import Segments
from lm.attention.masks import (
    EMPTY,
    FULL,
    NOTHING_KNOWN,
    PARTIAL,
    GlobalTokens,
    Mask,
    RandomBlocks,
    Strided,
    quotient,
)
from lm.attention.table import ByResidue, InPlace, OnlySummaries, Order

# Tokens of a block, of queries and of keys. The kernel wants multiples of 128.
_BLOCKS = 128, 256, 512
# What a step costs besides its pairs, in pairs: about a third of a microsecond. A guess, never measured.
_STEP = 2**16
# And a part of a mask besides its steps, in steps.
_PART = 16


class Ordered(NamedTuple):
    """A mask, the order of a device's queries, and the order of keys."""

    mask: Mask
    query: Order
    key: Order


@dataclasses.dataclass(frozen=True)
class First:
    """An order: the first `count` tokens of `length`, filled up to whole blocks."""

    length: int
    block: int
    count: int
    start: int = 0

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        x = x[(slice(None),) * axis + (slice(self.count),)]
        return _filled_up(x, axis, self.block)

    def put(self, x: jax.Array, axis: int) -> jax.Array:
        """The inverse of `take`; places that are not in this order are zero."""
        x = x[(slice(None),) * axis + (slice(min(self.count, self.length)),)]
        return _filled_up(x, axis, self.length)


@dataclasses.dataclass(frozen=True)
class From(Mask):
    """The tokens from place `first` on see all."""

    first: int

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        return (q_positions >= self.first) & (k_positions == k_positions)

    def classify(self, query, key):
        kinds = np.where(
            query.high < self.first, EMPTY, np.where(query.low < self.first, PARTIAL, FULL)
        )
        return np.broadcast_to(kinds, np.broadcast_shapes(query.low.shape, key.low.shape))


class Table(NamedTuple):
    """Which blocks the kernel goes through. For the gradient of keys, n and w change their places.

    Attributes:
        index: int `[shards, n, w]`, blocks of keys of each of the n blocks of queries.
        kind: int8 `[shards, n, w]`, of each: EMPTY is none.
        mask: int `[shards, n, w]`, which of the ready-made masks is that of each; None where masks are
            computed.
    """

    index: np.ndarray
    kind: np.ndarray
    mask: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The mask of a block, inside the kernel: of operations that compile for TPUs.

    Attributes:
        mask: who may attend to whom.
        key: the order of keys.
        filled: whether any token is one that fills up a block.
    """

    mask: Mask
    key: Order
    filled: bool

    def __call__(self, query: jax.Array, slot: jax.Array) -> jax.Array:
        """Returns bool, of the places of queries (-1 is none) and the indices of keys in their order."""
        places, there = places_of(self.key, slot)
        allowed = self.mask.allows(query, places)
        return allowed & there & (query >= 0) if self.filled else allowed


def places_of(order: Order, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the places in the row of tokens of an order, as `table.places`; and bool: are they there?"""
    match order:
        case InPlace():
            place = slot
        case ByResidue(stride=stride):
            residue = quotient(slot, order.size)
            place = (slot - residue * order.size) * stride + residue
            return place, (place < order.length) & (residue < stride)
        case OnlySummaries(size=size, count=count):
            chunk = quotient(slot, count)
            place = chunk * size + (size - count) + (slot - chunk * count)
        case First():
            return slot, slot < order.count
    return place, place < order.length


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The blocks of a part.

    Attributes:
        block: tokens of a block of queries, and of keys.
        kinds: int8 `[shards, blocks of queries, blocks of keys]`.
    """

    block: tuple[int, int]
    kinds: np.ndarray

    @property
    def pairs(self) -> int:
        """Pairs that are computed, on all devices, allowed or not."""
        return int((self.kinds != EMPTY).sum()) * math.prod(self.block)

    @property
    def steps(self) -> int:
        """Blocks that the kernel goes through: rows are as long as the longest one."""
        return self.kinds.shape[0] * self.kinds.shape[1] * max(_widest(self.kinds), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some of a mask's pairs, for the devices that a row is split over.

    Attributes:
        query: the order of a device's queries.
        key: the order of the row's keys.
        block: tokens of a block of queries, and of keys.
        function: computes the mask of a block; None where masks are ready-made.
        masks: bool `[m, t, s]`, the ready-made ones.
        tables: of the forward pass and of the gradient of keys, and int32 `[shards, t]`, the places of
            queries.
    """

    query: Order
    key: Order
    block: tuple[int, int]
    function: Allowed | None
    masks: np.ndarray | None
    tables: tuple[Table, Table, np.ndarray]

    def queries(self, x: jax.Array, axis: int) -> jax.Array:
        return _filled_up(self.query.take(x, axis), axis, self.block[0])

    def keys(self, x: jax.Array, axis: int) -> jax.Array:
        return _filled_up(self.key.take(x, axis), axis, self.block[1])

    def put_queries(self, x: jax.Array, axis: int) -> jax.Array:
        return _put(self.query, x, axis)

    def put_keys(self, x: jax.Array, axis: int) -> jax.Array:
        return _put(self.key, x, axis)

    def tokens(self, segments: Segments | None) -> Segments | None:
        """Returns int32 `[B, t]` and `[B, s]`, those of a device's queries and of the row's keys."""
        return segments and (self.queries(segments[0], 1), self.keys(segments[1], 1))

    @property
    def block_sizes(self):
        from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

        q, k = self.block
        return BlockSizes(
            block_q=q,
            block_kv=k,
            block_kv_compute=k,
            block_q_dkv=q,
            block_kv_dkv=k,
            block_kv_dkv_compute=k,
            block_q_dq=q,
            block_kv_dq=k,
        )

    def mask_infos(self, tables):
        """Returns what the kernels of the forward pass and of the gradient of keys are told of the mask."""
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info

        *both, places = tables
        transposed = None if self.masks is None else np.swapaxes(self.masks, 1, 2)
        return tuple(
            splash_attention_mask_info.MaskInfo(
                data_next=found.index,
                block_mask=found.kind,
                mask_next=found.mask,
                partial_mask_blocks=None if masks is None else jnp.asarray(masks),
                q_sequence=None if self.function is None else places[0],
            )
            for found, masks in zip(both, (self.masks, transposed), strict=True)
        )


def _filled_up(x: jax.Array, axis: int, block: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return (np if isinstance(x, np.ndarray) else jnp).pad(x, widths)


def _put(order: Order, x: jax.Array, axis: int) -> jax.Array:
    """The inverse of taking an order and filling it up."""
    return order.put(jax.lax.slice_in_dim(x, 0, len(table.places(order)), axis=axis), axis)


@functools.lru_cache(maxsize=256)
def parts_of(mask: Mask, length: int, source: int, shards: int) -> tuple[Part, ...]:
    """Returns disjoint parts that together are the mask, for T = `length` queries and S = `source` keys."""
    return tuple(_part(*orders, shards) for orders in orders_of(mask, length, source, shards))


def orders_of(mask: Mask, length: int, source: int, shards: int) -> list['Ordered']:
    """Returns the mask of each part, the order of the queries of one device, and that of keys."""
    orders = []
    for part in table.plan(mask, length, source):
        whole = Ordered(part.mask, _of_length(part.query, length // shards), part.key)
        orders += min(([whole], _without_global(whole)), key=functools.partial(_cost, shards))
    return orders


def _cost(shards: int, orders: list['Ordered']) -> float:
    """Returns what parts cost, in pairs."""
    layouts = [layout_of(*each, shards) for each in orders]
    if not layouts:
        return math.inf
    return sum(layout.pairs + _STEP * (layout.steps + _PART * shards) for layout in layouts)


def _without_global(whole: 'Ordered') -> list['Ordered']:
    """Returns a part without its global tokens, those tokens, and what sees them; [] where there are none.

    The kernel goes through as many blocks for each row as for the longest, and global tokens see all.
    """
    mask, query, key = whole
    atoms = [atom for atom in table.positive_atoms(mask) if isinstance(atom, GlobalTokens)]
    if not atoms or not isinstance(query, InPlace) or not isinstance(key, InPlace):
        return []
    atom = max(atoms, key=lambda atom: atom.count)
    first = [First(order.length, order.block, atom.count) for order in (query, key)]
    return [
        Ordered(table.replace(mask, atom, table.NOTHING) & ~atom, query, key),
        Ordered(mask, first[0], key),
        Ordered(mask & From(atom.count), query, first[1]),
    ]


def _of_length(order: Order, length: int) -> Order:
    """Returns the order for fewer tokens."""
    if isinstance(order, ByResidue):  # Blocks no larger than a class.
        size = -(-length // order.stride)
        return ByResidue(length, min(order.block, 1 << (size - 1).bit_length()), order.stride)
    return dataclasses.replace(order, length=length)


def _part(mask: Mask, query: Order, key: Order, shards: int) -> Part:
    layout = layout_of(mask, query, key, shards)
    # A block may hold several residue classes.
    exact = mask & Strided(key.stride) if isinstance(key, ByResidue) else mask
    slots = [
        np.pad(
            table.places(shard),
            (0, -len(table.places(query)) % layout.block[0]),
            constant_values=-1,
        )
        for shard in _shards(query, shards)
    ]
    places = np.stack(slots).astype(np.int32)  # [shards, t]
    function = masks = which = None
    if table.holds(mask, RandomBlocks):
        masks, which = _ready_made(exact, places, key, layout)
    else:
        k_slots = layout.kinds.shape[2] * layout.block[1]
        filled = (places < 0).any() or k_slots > np.count_nonzero(table.places(key) >= 0)
        function = Allowed(exact, key, bool(filled))
    forward = _rows(layout.kinds, which)
    swapped = None if which is None else np.swapaxes(which, 1, 2)
    backward = _rows(np.swapaxes(layout.kinds, 1, 2), swapped)
    backward = jax.tree.map(lambda x: np.swapaxes(x, 1, 2), backward)
    return Part(query, key, layout.block, function, masks, (forward, backward, places))


def _shards(query: Order, shards: int) -> list[Order]:
    """Returns the order of the queries of each of so many shards of a row."""
    return [dataclasses.replace(query, start=i * query.length) for i in range(shards)]


@functools.lru_cache(maxsize=256)
def layout_of(mask: Mask, query: Order, key: Order, shards: int) -> Layout:
    """Returns the blocks of those sizes that cost least."""
    whole = [(table.places(o).reshape(-1, o.block) >= 0).all(axis=1) for o in (query, key)]
    small = np.stack([table.table(mask, shard, key) for shard in _shards(query, shards)])
    # A block with places that are not there is not full.
    small = np.where(whole[0][:, None] & whole[1], small, np.minimum(small, PARTIAL))
    # Ready-made masks of larger blocks are all different: 1 MB become 100.
    sizes = _BLOCKS[:1] if table.holds(mask, RandomBlocks) else _BLOCKS
    layouts = [
        Layout(block, _coarse(small, block[0] // query.block, block[1] // key.block))
        for block in itertools.product(sizes, repeat=2)
    ]
    return min(layouts, key=lambda layout: layout.pairs + _STEP * layout.steps)


def _coarse(kinds: np.ndarray, queries: int, keys: int) -> np.ndarray:
    """Returns the kinds of blocks of so many blocks each, int8 `[shards, n, m]`."""
    shards, rows, columns = kinds.shape
    kinds = np.pad(kinds, ((0, 0), (0, -rows % queries), (0, -columns % keys)))  # with EMPTY
    kinds = kinds.reshape(shards, -(-rows // queries), queries, -(-columns // keys), keys)
    empty, full = (kinds == EMPTY).all(axis=(2, 4)), (kinds == FULL).all(axis=(2, 4))
    return np.where(empty, EMPTY, np.where(full, FULL, PARTIAL))


def _widest(kinds: np.ndarray) -> int:
    return int((kinds != EMPTY).sum(axis=2).max())


def _rows(kinds: np.ndarray, which: np.ndarray | None) -> Table:
    """Returns the blocks of each row that are not empty, side by side.

    Args:
        kinds: int8 `[shards, n, m]`.
        which: int `[shards, n, m]`, numbers of ready-made masks.
    """
    width = max(_widest(kinds), 1)
    count = (kinds != EMPTY).sum(axis=2, keepdims=True)
    first = np.argsort(kinds == EMPTY, axis=2, kind='stable')
    # After the last one there is nothing to do: it is named again, so that nothing is fetched.
    index = np.take_along_axis(
        first, np.minimum(np.arange(width), np.maximum(count - 1, 0)), axis=2
    )
    kind = np.where(np.arange(width) < count, np.take_along_axis(kinds, index, axis=2), EMPTY)
    mask = None if which is None else _small(np.take_along_axis(which, index, axis=2))
    return Table(_small(index), kind.astype(np.int8), mask)


def _small(x: np.ndarray) -> np.ndarray:
    """Returns integers in the fewest bits: the memory for a table's is scarce."""
    most = x.max(initial=0)
    return x.astype(next(t for t in (np.int8, np.int16, np.int32) if most <= np.iinfo(t).max))


def _ready_made(
    mask: Mask, queries: np.ndarray, key: Order, layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different masks of blocks, bool `[m, t, s]`, and which is that of each block.

    Args:
        mask: who may attend to whom; one that would cost more in the kernel than the attention.
        queries: int32 `[shards, t]`, places.
        key: the order of keys.
        layout: of the blocks.
    """
    q_block, k_block = layout.block
    slots = np.arange(layout.kinds.shape[2] * k_block)
    keys, there = places_of(key, slots)
    found: dict[bytes, int] = {}
    masks, which = [], np.zeros(layout.kinds.shape, np.int32)
    for shard, i, j in np.argwhere(layout.kinds == PARTIAL):
        q = queries[shard, i * q_block : (i + 1) * q_block, None]
        k = slice(j * k_block, (j + 1) * k_block)
        allowed = mask.allows(q, keys[k]) & there[k] & (q >= 0)
        name = np.packbits(allowed).tobytes()
        if name not in found:
            found[name] = len(masks)
            masks.append(allowed)
        which[shard, i, j] = found[name]
    return np.stack(masks) if masks else np.zeros((1, *layout.block), bool), which
