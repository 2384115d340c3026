"""JAX's splash attention, a kernel for TPUs, fed from the table of a mask's blocks.

Splash attention (`jax.experimental.pallas.ops.tpu.splash_attention`) goes through the blocks of pairs that
a table names, and computes the mask of a block from the places of its tokens. Here the table comes from
interval arithmetic, and a mask that is sparse between tokens is put in another order first, part by part
(`lm/attention/table.py`). Parts are merged by their log-sum-exp; so that the gradient is that of the merged
softmax, each part's backward kernel is given the log-sum of all of them.

Over a mesh each device holds its own rows and heads, and its own queries of a row, for which it gathers the
keys of the whole row. Pallas' kernels are not split by the compiler: `jax.shard_map` does it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from lm.attention import sparse, table
from lm.attention.block import FORBIDDEN, PLAIN, Extras
from lm.attention.masks import (
    EMPTY,
    FULL,
    NOTHING_KNOWN,
    PARTIAL,
    And,
    Full,
    GlobalTokens,
    Mask,
    Not,
    Or,
    Prefix,
    RandomBlocks,
    Segments,
    Strided,
    quotient,
)
from lm.attention.table import ByResidue, InPlace, OnlySummaries, Order
from lm.mesh import ROWS

# Tokens of a block, of queries and of keys. The kernel wants multiples of 128.
_BLOCKS = 128, 256, 512
# What a step costs besides its pairs, in pairs: about a third of a microsecond. A guess, never measured.
_STEP = 2**16
# And a part of a mask besides its steps, in steps.
_PART = 16


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    segments: tuple[jax.Array, jax.Array] | None = None,
    in_prefix: jax.Array | None = None,
    extras: Extras = PLAIN,
    interpret: bool = False,
) -> jax.Array:
    """Returns `[B, T, H, K]`; the arguments are those of `lm.attention.attend`.

    Queries and keys are at places 0, 1, 2, ...

    Args:
        query, key, value, mask, segments, extras: as there; extras without slopes.
        in_prefix: must not be given with a mask that asks for it.
        interpret: runs the kernel step by step on any platform, for tests. It is very slow.
    """
    split = _split(query, key)
    if split.repeats > 1:
        key, value = (jnp.repeat(x, split.repeats, axis=2) for x in (key, value))
    # Tokens of different segments never see each other: to the mask, those that are left are of one.
    how = _How(table.replace(mask, Segments(), Full()), extras.softcap, split, interpret)
    return _attend(query, key, value, segments, how)


def obstacle(mask: Mask, extras: Extras, dtype: Any, platform: str, tokens_known: bool) -> str:
    """Says why the kernel cannot do something, and what to do; '' where it can.

    Args:
        mask: who may attend to whom.
        extras: of the logits.
        dtype: of the arrays.
        platform: cpu | gpu | tpu.
        tokens_known: whether segments or prefixes are told.
    """
    if extras.slopes is not None:
        return "knows no ALiBi: use 'sparse', or another config.model.position."
    if tokens_known and _holds(mask, Prefix):
        return "does not know which tokens are a prefix: use 'sparse'."
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return f"needs config.model.dtype = 'float32' or 'bfloat16', not {jnp.dtype(dtype)}."
    if platform != 'tpu':
        return f"needs a TPU, and this is a {platform.upper()}: use 'auto'."
    return ''


def pairs(mask: Mask, length: int, source: int) -> int:
    """Returns how many pairs the kernel computes, forward, allowed or not, on one device."""
    mask = table.replace(mask, Segments(), Full())
    return sum(_layout(*orders, 1).pairs for orders in _orders(mask, length, source, 1))


# --- over the mesh --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Split:
    """How arrays are split over the axes of the mesh; None and 1 where they are not.

    Attributes:
        rows: axes that split B.
        heads: the axis that splits the H heads of queries.
        groups: the axis that splits the G heads of keys.
        sequence: the axis that splits T and S.
        shards: into how many parts it splits them.
        repeats: how often heads of keys are repeated, for the axis to divide them.
    """

    rows: tuple[str, ...] | None = None
    heads: str | None = None
    groups: str | None = None
    sequence: str | None = None
    shards: int = 1
    repeats: int = 1

    @property
    def queries(self) -> P:  # [B, T, H, K]
        return P(self.rows, self.sequence, self.heads)

    @property
    def keys(self) -> P:  # [B, S, G, K]
        return P(self.rows, self.sequence, self.groups)

    @property
    def tokens(self) -> P:  # [B, T]
        return P(self.rows, self.sequence)

    @property
    def sums(self) -> P:  # [B, H, T]
        return P(self.rows, self.heads, self.sequence)


class _How(NamedTuple):
    """What attention is to do, besides its arrays."""

    mask: Mask
    softcap: float | None
    split: _Split
    interpret: bool


def _split(query: jax.Array, key: jax.Array) -> _Split:
    """Returns how the current mesh splits queries `[B, T, H, K]` and keys `[B, S, G, K]`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _Split()
    (batch, length, heads, _), (_, source, groups, _) = query.shape, key.shape
    rows = tuple(axis for axis in ROWS if axis in mesh.shape)
    if batch % math.prod(mesh.shape[axis] for axis in rows):
        rows = None
    shards = mesh.shape.get('sequence', 1)
    if length % shards or source % shards:
        shards = 1
    parts = mesh.shape.get('tensor', 1)
    over_heads = 'tensor' if parts > 1 and heads % parts == 0 else None
    repeats = heads // groups if over_heads and groups > 1 and groups % parts else 1
    return _Split(
        rows=rows,
        heads=over_heads,
        groups=over_heads if groups > 1 else None,
        sequence='sequence' if shards > 1 else None,
        shards=shards,
        repeats=repeats,
    )


def _over_mesh(function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """Returns a function of whole arrays, of one of each device's parts of them."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query, key, value, segments, how):
    return _forward(query, key, value, segments, how)[0]


def _forward(query, key, value, segments, how):
    split, parts = how.split, _parts(how.mask, query.shape[1], key.shape[1], how.split.shards)
    run = _over_mesh(
        functools.partial(_forward_here, parts, how),
        (P(split.sequence), split.queries, split.keys, split.keys, split.tokens),
        (split.queries, split.sums),
    )
    out, log_sum = run([part.tables for part in parts], query, key, value, segments)
    return out, (query, key, value, segments, out, log_sum)


def _backward(how, residuals, gradient):
    query, key, value, segments, out, log_sum = residuals
    split, parts = how.split, _parts(how.mask, query.shape[1], key.shape[1], how.split.shards)
    run = _over_mesh(
        functools.partial(_backward_here, parts, how),
        (
            P(split.sequence),
            split.queries,
            split.keys,
            split.keys,
            split.tokens,
            split.queries,
            split.sums,
            split.queries,
        ),
        (split.queries, split.keys, split.keys),
    )
    tables = [part.tables for part in parts]
    return *run(tables, query, key, value, segments, out, log_sum, gradient), None


_attend.defvjp(_forward, _backward)


# --- on one device --------------------------------------------------------------------------------


def _forward_here(parts, how, tables, query, key, value, segments):
    """Returns `[B, T, H, K]`, and the log-sum of each row, float32 `[B, H, T]`."""
    scaled = _heads_first(_scaled(query))
    key, value = (_heads_first(_whole_row(x, how.split)) for x in (key, value))  # [B, G, S, K]
    outs, log_sums = [], []
    for part, arrays in zip(parts, tables, strict=True):
        ids = part.segments(segments, how.split)
        out, log_sum = jax.vmap(functools.partial(_kernel, part, how, arrays))(
            part.queries(scaled, 2), part.keys(key, 2), part.keys(value, 2), ids
        )
        seen = log_sum > FORBIDDEN / 2  # Not where a row sees nothing, nor where it is NaN.
        out, log_sum = part.put_queries(out, 2), part.put_queries(log_sum, 2)
        seen = part.put_queries(seen, 2)
        outs.append(jnp.where(seen[..., None], out.astype(jnp.float32), 0))
        log_sums.append(jnp.where(seen, log_sum, FORBIDDEN / 2)[..., None])
    out, log_sum = sparse.merge(outs, log_sums, scaled)
    return _heads_first(out.astype(query.dtype)), log_sum[..., 0]


def _backward_here(parts, how, tables, query, key, value, segments, out, log_sum, gradient):
    """Returns gradients in the shapes and dtypes of query, key and value."""
    scaled, out, gradient = (_heads_first(x) for x in (_scaled(query), out, gradient))
    k, v = (_heads_first(_whole_row(x, how.split)) for x in (key, value))
    # Exponentials of the logits less this are 0 in a row that sees nothing.
    log_sum = jnp.where(log_sum > 0.9 * FORBIDDEN / 2, log_sum, -FORBIDDEN / 4)
    d_query, d_key, d_value = (jnp.zeros(x.shape, jnp.float32) for x in (scaled, k, v))
    for part, arrays in zip(parts, tables, strict=True):
        ids = part.segments(segments, how.split)
        new_q, new_k, new_v = jax.vmap(functools.partial(_kernel_gradient, part, how, arrays))(
            part.queries(scaled, 2),
            part.keys(k, 2),
            part.keys(v, 2),
            ids,
            part.queries(out, 2),
            part.queries(log_sum, 2),
            part.queries(gradient, 2),
        )
        d_query += part.put_queries(new_q, 2)
        d_key += part.put_keys(new_k, 2)
        d_value += part.put_keys(new_v, 2)
    d_query = (query.shape[-1] ** -0.5 * d_query).astype(query.dtype)
    d_key, d_value = (_own_part(_heads_first(x), how.split) for x in (d_key, d_value))
    return _heads_first(d_query), d_key.astype(key.dtype), d_value.astype(value.dtype)


def _scaled(query: jax.Array) -> jax.Array:
    """The kernel does not scale logits. In 16 bits this rounds, unless K is a power of 4."""
    return (query * jnp.float32(query.shape[-1] ** -0.5)).astype(query.dtype)


def _heads_first(x: jax.Array) -> jax.Array:
    """Returns `[B, H, T, K]` of `[B, T, H, K]`, and the reverse."""
    return jnp.swapaxes(x, 1, 2)


def _whole_row(x: jax.Array, split: _Split) -> jax.Array:
    """Returns `[B, S, ...]` of a device's part of it."""
    return jax.lax.all_gather(x, split.sequence, axis=1, tiled=True) if split.sequence else x


def _own_part(gradient: jax.Array, split: _Split) -> jax.Array:
    """Returns a device's part of the sum over all devices of a gradient for keys, `[B, S, G, K]`."""
    if split.heads and not split.groups:
        gradient = jax.lax.psum(gradient, split.heads)
    if split.sequence:
        return jax.lax.psum_scatter(gradient, split.sequence, scatter_dimension=1, tiled=True)
    return gradient


def _kernel(part, how, tables, query, key, value, segments):
    """Returns `[H, t, K]` and the log-sums, float32 `[H, t]`, of one row.

    Args:
        part: of the mask.
        how: to attend.
        tables: the device's, with a leading axis of 1.
        query: scaled, `[H, t, K]`, in the part's order and filled up to whole blocks.
        key: `[G, s, K]`.
        value: `[G, s, K]`.
        segments: int32 `[t]` and `[s]`, or None.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    forward, _ = part.mask_infos(tables)
    run = splash.SplashAttentionKernel(
        forward,
        None,
        None,
        block_sizes=part.block_sizes,
        is_mqa=False,
        save_residuals=True,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=how.softcap,
        residual_checkpoint_name=None,
        mask_function=part.function,
        interpret=how.interpret,
    )
    ids = None if segments is None else splash.SegmentIds(*segments)
    out, (log_sum,) = run(query, key, value, ids)
    return out, log_sum


def _kernel_gradient(part, how, tables, query, key, value, segments, out, log_sum, gradient):
    """Returns gradients of query, key and value of one row.

    The log-sum is that of all parts. The gradient that JAX makes of its kernel would take this part's own:
    hence its backward rule, which is not in its public interface, is called here. Its signature is the
    same in JAX 0.10.2 and 0.12.0.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    forward, backward = part.mask_infos(tables)
    ids = None if segments is None else splash.SegmentIds(*segments)
    gradients = splash._splash_attention_bwd(
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        is_mqa=False,
        block_sizes=part.block_sizes,
        residual_checkpoint_name=None,
        mask_function=part.function,
        attn_logits_soft_cap=how.softcap,
        interpret=how.interpret,
        res=(query, key, value, ids, None, out, log_sum, forward, backward),
        do=gradient,
    )
    return gradients[3:6]


# --- parts of a mask ------------------------------------------------------------------------------


class _Ordered(NamedTuple):
    """A mask, the order of a device's queries, and the order of keys."""

    mask: Mask
    query: Order
    key: Order


@dataclasses.dataclass(frozen=True)
class _First:
    """An order: the first `count` tokens of `length`, filled up to whole blocks."""

    length: int
    block: int
    count: int

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        x = x[(slice(None),) * axis + (slice(self.count),)]
        return _filled_up(x, axis, self.block)

    def put(self, x: jax.Array, axis: int) -> jax.Array:
        """The inverse of `take`; places that are not in this order are zero."""
        x = x[(slice(None),) * axis + (slice(min(self.count, self.length)),)]
        return _filled_up(x, axis, self.length)


@dataclasses.dataclass(frozen=True)
class _From(Mask):
    """The tokens from place `first` on see all."""

    first: int

    def allows(self, q_positions, k_positions, known=NOTHING_KNOWN):
        return (q_positions >= self.first) & (k_positions == k_positions)

    def classify(self, query, key):
        kinds = np.where(
            query.high < self.first, EMPTY, np.where(query.low < self.first, PARTIAL, FULL)
        )
        return np.broadcast_to(kinds, np.broadcast_shapes(query.low.shape, key.low.shape))


class _Table(NamedTuple):
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
class _Allowed:
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
        places, there = _places(self.key, slot)
        allowed = self.mask.allows(query, places)
        return allowed & there & (query >= 0) if self.filled else allowed


def _places(order: Order, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
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
        case _First():
            return slot, slot < order.count
    return place, place < order.length


@dataclasses.dataclass(frozen=True, eq=False)
class _Layout:
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
class _Part:
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
    function: _Allowed | None
    masks: np.ndarray | None
    tables: tuple[_Table, _Table, np.ndarray]

    def queries(self, x: jax.Array, axis: int) -> jax.Array:
        return _filled_up(self.query.take(x, axis), axis, self.block[0])

    def keys(self, x: jax.Array, axis: int) -> jax.Array:
        return _filled_up(self.key.take(x, axis), axis, self.block[1])

    def put_queries(self, x: jax.Array, axis: int) -> jax.Array:
        return _put(self.query, x, axis)

    def put_keys(self, x: jax.Array, axis: int) -> jax.Array:
        return _put(self.key, x, axis)

    def segments(self, segments, split: _Split) -> tuple[jax.Array, jax.Array] | None:
        """Returns int32 `[B, t]` and `[B, s]`."""
        if segments is None:
            return None
        query, key = (x.astype(jnp.int32) for x in segments)
        return self.queries(query, 1), self.keys(_whole_row(key, split), 1)

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
def _parts(mask: Mask, length: int, source: int, shards: int) -> tuple[_Part, ...]:
    """Returns disjoint parts that together are the mask, for T = `length` queries and S = `source` keys."""
    return tuple(_part(*orders, shards) for orders in _orders(mask, length, source, shards))


def _orders(mask: Mask, length: int, source: int, shards: int) -> list['_Ordered']:
    """Returns the mask of each part, the order of the queries of one device, and that of keys."""
    orders = []
    for part in table.plan(mask, length, source):
        whole = _Ordered(part.mask, _of_length(part.query, length // shards), part.key)
        orders += min(([whole], _without_global(whole)), key=functools.partial(_cost, shards))
    return orders


def _cost(shards: int, orders: list['_Ordered']) -> float:
    """Returns what parts cost, in pairs."""
    layouts = [_layout(*each, shards) for each in orders]
    if not layouts:
        return math.inf
    return sum(layout.pairs + _STEP * (layout.steps + _PART * shards) for layout in layouts)


def _without_global(whole: '_Ordered') -> list['_Ordered']:
    """Returns a part without its global tokens, those tokens, and what sees them; [] where there are none.

    The kernel goes through as many blocks for each row as for the longest, and global tokens see all.
    """
    mask, query, key = whole
    atoms = [atom for atom in table.positive_atoms(mask) if isinstance(atom, GlobalTokens)]
    if not atoms or not isinstance(query, InPlace) or not isinstance(key, InPlace):
        return []
    atom = max(atoms, key=lambda atom: atom.count)
    first = [_First(order.length, order.block, atom.count) for order in (query, key)]
    return [
        _Ordered(table.replace(mask, atom, table.NOTHING) & ~atom, query, key),
        _Ordered(mask, first[0], key),
        _Ordered(mask & _From(atom.count), query, first[1]),
    ]


def _of_length(order: Order, length: int) -> Order:
    """Returns the order for fewer tokens."""
    if isinstance(order, ByResidue):  # Blocks no larger than a class.
        size = -(-length // order.stride)
        return ByResidue(length, min(order.block, 1 << (size - 1).bit_length()), order.stride)
    return dataclasses.replace(order, length=length)


def _part(mask: Mask, query: Order, key: Order, shards: int) -> _Part:
    layout = _layout(mask, query, key, shards)
    # A block may hold several residue classes.
    exact = mask & Strided(key.stride) if isinstance(key, ByResidue) else mask
    slots = [
        np.pad(
            table.places(query, start),
            (0, -len(table.places(query)) % layout.block[0]),
            constant_values=-1,
        )
        for start in _starts(query, shards)
    ]
    places = np.stack(slots).astype(np.int32)  # [shards, t]
    function = masks = which = None
    if _holds(mask, RandomBlocks):
        masks, which = _ready_made(exact, places, key, layout)
    else:
        k_slots = layout.kinds.shape[2] * layout.block[1]
        filled = (places < 0).any() or k_slots > np.count_nonzero(table.places(key) >= 0)
        function = _Allowed(exact, key, bool(filled))
    forward = _rows(layout.kinds, which)
    swapped = None if which is None else np.swapaxes(which, 1, 2)
    backward = _rows(np.swapaxes(layout.kinds, 1, 2), swapped)
    backward = jax.tree.map(lambda x: np.swapaxes(x, 1, 2), backward)
    return _Part(query, key, layout.block, function, masks, (forward, backward, places))


def _starts(query: Order, shards: int) -> range:
    return range(0, shards * query.length, query.length)


@functools.lru_cache(maxsize=256)
def _layout(mask: Mask, query: Order, key: Order, shards: int) -> _Layout:
    """Returns the blocks of those sizes that cost least."""
    whole = [(table.places(o).reshape(-1, o.block) >= 0).all(axis=1) for o in (query, key)]
    small = np.stack([table.table(mask, query, key, start) for start in _starts(query, shards)])
    # A block with places that are not there is not full.
    small = np.where(whole[0][:, None] & whole[1], small, np.minimum(small, PARTIAL))
    # Ready-made masks of larger blocks are all different: 1 MB become 100.
    sizes = _BLOCKS[:1] if _holds(mask, RandomBlocks) else _BLOCKS
    layouts = [
        _Layout(block, _coarse(small, block[0] // query.block, block[1] // key.block))
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


def _rows(kinds: np.ndarray, which: np.ndarray | None) -> _Table:
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
    return _Table(_small(index), kind.astype(np.int8), mask)


def _small(x: np.ndarray) -> np.ndarray:
    """Returns integers in the fewest bits: the memory for a table's is scarce."""
    most = x.max(initial=0)
    return x.astype(next(t for t in (np.int8, np.int16, np.int32) if most <= np.iinfo(t).max))


def _ready_made(
    mask: Mask, queries: np.ndarray, key: Order, layout: _Layout
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
    keys, there = _places(key, slots)
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


def _holds(mask: Mask, kind: type) -> bool:
    """Whether a mask is made of, among others, one of a kind."""
    match mask:
        case And(parts) | Or(parts):
            return any(_holds(part, kind) for part in parts)
        case Not(inner):
            return _holds(inner, kind)
    return isinstance(mask, kind)
