"""The kernels of attention on NVIDIA Hopper, in Pallas for Mosaic GPU; `lm/attention/hopper.py` runs them.

A tile of 128 tokens stays in shared memory while the blocks that the mask leaves for it stream past, told
by a list that is made of the mask (`lm/attention/walk.py`). Blocks that are full skip the mask; in the
others it is evaluated from the places of their tokens. Two warpgroups compute, 64 tokens of the tile each,
and a third fetches ahead by TMA. Products run on the tensor cores (WGMMA), from 16 bits into float32; the
softmax is float32, in powers of two.

| kernel           | tile    | what streams past                              | lists   |
|------------------|---------|------------------------------------------------|---------|
| `forward`        | queries | keys, values                                   | rows    |
| `query_gradient` | queries | keys, values                                   | rows    |
| `key_gradients`  | keys    | queries and gradients, of each head of a group | columns |

The algorithms: Dao et al. 2022 (https://arxiv.org/abs/2205.14135), Dao 2023
(https://arxiv.org/abs/2307.08691) for the two backward passes, Shah et al. 2024
(https://arxiv.org/abs/2407.08608) for the division of work on Hopper.

A kernel is called with `Problem`, the lists of blocks, `Arrays` and results in global memory; and in shared
memory what it holds of its tile, one entry a warpgroup; what streams past, one entry a stage; and barriers:
the tile is there, a stage is there, a stage is free.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from lm.attention import walk
from lm.attention.masks import Mask

WARPGROUPS = 2  # that compute; one more fetches.
ROWS = 64  # of a tile, for each of them: what one WGMMA instruction takes.
TILE = WARPGROUPS * ROWS
FORWARD, BACKWARD = 128, 64  # Tokens of a block that streams past.
STAGES = 2  # Blocks in shared memory at once.

_REGISTERS = {'compute': 240, 'fetch': 24}  # A thread's: at most 65,536 in the three warpgroups.
_LOG2E = math.log2(math.e)
# Below all logits, and finite: a row that sees nothing gets powers of two of -inf, which are 0, not NaN.
_LEAST = -1e30


@dataclasses.dataclass(frozen=True)
class Problem:
    """What the kernels know when they are compiled.

    Attributes:
        mask: who may attend to whom.
        softcap: of the logits.
        width: K.
        length: T, without what fills it up.
        source: S, likewise.
        segments: rows hold several documents.
        prefix: keys say whether they belong to a prefix.
    """

    mask: Mask
    softcap: float | None
    width: int
    length: int
    source: int
    segments: bool
    prefix: bool

    @property
    def scale(self) -> float:
        """Of the products of queries and keys."""
        return self.width**-0.5

    @property
    def tokens(self) -> bool:
        """Whether anything is told of tokens besides their places."""
        return self.segments or self.prefix


class Arrays(NamedTuple):
    """What kernels read. T and S are filled up to whole tiles.

    Attributes:
        query: `[B, T, H, K]`.
        key: `[B, S, G, K]`.
        value: `[B, S, G, K]`.
        tokens: int32 `[B, T]` and `[B, S]`, twice the segment, and 1 more for a key of a
            prefix; or nothing.
        gradient: of the result, `[B, T, H, K]`. It and what follows is for the backward pass.
        log_sum: float32 `[B, H, T]`, the log-sum-exp, to base 2.
        along: float32 `[B, H, T]`, sums of gradient times result over K.
    """

    query: Any
    key: Any
    value: Any
    tokens: tuple[Any, ...] = ()
    gradient: Any = None
    log_sum: Any = None
    along: Any = None

    @property
    def repeats(self) -> int:
        """Heads of queries for each head of keys."""
        return self.query.shape[2] // self.key.shape[2]


# --- the kernels ----------------------------------------------------------------------------------


def forward(problem, order, arrays, out, sums, tile, stream, barriers) -> None:
    """To out `[B, T, H, K]`, and to sums float32 `[B, H, T]`, log-sum-exps to base 2."""
    here, ready, free = barriers
    shape = (ROWS, FORWARD)

    def compute(warpgroup):
        place = _place(order, warpgroup)
        query, log_sum, q_told = (_at(x, warpgroup) for x in tile)
        mine = _queries(arrays, place, pl.ds(place.base, ROWS), place.head)
        _fetch([(mine.query, query), *_pairs(mine.tokens, q_told)], here.at[warpgroup])
        q_told = _vectors(q_told, 1)

        def step(i, slot, carry, partial):
            total, top, acc = carry
            key, value, k_told = (_at(x, slot) for x in stream)
            entry = order.blocks[place.first + i]  # Early: memory is far.
            logits, _ = _logits(_product(query, key, transposed=True), problem)
            at = _Block(place.base, _number(entry) * FORWARD, shape, 0, entry, warpgroup)
            logits = _forbid(logits, at, problem, q_told, _vectors(k_told, 0), partial)
            new_top = jnp.maximum(top, jnp.max(logits, axis=1))
            weights = jnp.exp2(logits - _over(new_top, shape, 0))
            shrink = jnp.exp2(top - new_top)
            total = total * shrink + jnp.sum(weights, axis=1)
            acc *= _over(shrink, acc.shape, 0)
            acc = _add_product(acc, weights.astype(value.dtype), value)
            return total, new_top, acc

        row = plgpu.Layout.WGMMA.reduce(1)
        carry = (
            _filled((ROWS,), 0.0, row),
            _filled((ROWS,), _LEAST, row),
            _filled((ROWS, problem.width), 0.0, plgpu.Layout.WGMMA),
        )
        total, top, acc = _both_loops(place.full, place.count, ready, free, step, carry)
        total = jnp.where(total == 0.0, 1.0, total)
        log_sum[...] = top + jnp.log2(total)
        query[...] = (acc / _over(total, acc.shape, 0)).astype(query.dtype)
        tokens = pl.ds(place.base, ROWS)
        _store(
            (query, out.at[place.batch, tokens, place.head]),
            (log_sum, sums.at[place.batch, place.head, tokens]),
        )

    _split(compute, lambda: _fetch_keys(order, arrays, stream, FORWARD, ready, free))


def query_gradient(problem, order, arrays, out, tile, stream, barriers) -> None:
    """To out `[B, T, H, K]`."""
    here, ready, free = barriers
    shape = (ROWS, BACKWARD)

    def compute(warpgroup):
        place = _place(order, warpgroup)
        query, gradient, log_sum, along, q_told = (_at(x, warpgroup) for x in tile)
        mine = _queries(arrays, place, pl.ds(place.base, ROWS), place.head)
        copies = [
            (mine.query, query),
            (mine.gradient, gradient),
            (mine.log_sum, log_sum),
            (mine.along, along),
            *_pairs(mine.tokens, q_told),
        ]
        _fetch(copies, here.at[warpgroup])
        sums, subtracted = _vectors((log_sum, along), 1)
        q_told = _vectors(q_told, 1)

        def step(i, slot, acc, partial):
            key, value, k_told = (_at(x, slot) for x in stream)
            entry = order.blocks[place.first + i]  # Early: memory is far.
            logits, slope = _logits(_product(query, key, transposed=True), problem)
            at = _Block(place.base, _number(entry) * BACKWARD, shape, 0, entry, warpgroup)
            logits = _forbid(logits, at, problem, q_told, _vectors(k_told, 0), partial)
            weights = jnp.exp2(logits - _over(sums, shape, 0))
            weights = weights if slope is None else weights * slope
            d_weights = _over(-subtracted, shape, 0)
            d_weights = _add_product(d_weights, gradient, value, transposed=True)
            return _add_product(acc, (weights * d_weights).astype(key.dtype), key)

        acc = _filled((ROWS, problem.width), 0.0, plgpu.Layout.WGMMA)
        acc = _both_loops(place.full, place.count, ready, free, step, acc)
        query[...] = (acc * problem.scale).astype(query.dtype)
        _store((query, out.at[place.batch, pl.ds(place.base, ROWS), place.head]))

    _split(compute, lambda: _fetch_keys(order, arrays, stream, BACKWARD, ready, free))


def key_gradients(problem, order, arrays, key_out, value_out, tile, stream, barriers) -> None:
    """To both out `[B, S, G, K]`. Queries come once for each head of the group."""
    repeats = arrays.repeats
    here, ready, free = barriers
    shape = (ROWS, BACKWARD)  # Keys are the rows.

    def compute(warpgroup):
        place = _place(order, warpgroup)
        key, value, k_told = (_at(x, warpgroup) for x in tile)
        mine = _keys(arrays, place, pl.ds(place.base, ROWS), place.head)
        copies = [(mine.key, key), (mine.value, value), *_pairs(mine.tokens, k_told)]
        _fetch(copies, here.at[warpgroup])
        k_told = _vectors(k_told, 1)

        def step(i, slot, carry, partial):
            d_key, d_value = carry
            query, gradient, log_sum, along, q_told = (_at(x, slot) for x in stream)
            entry = order.blocks[place.first + lax.div(i, repeats)]
            logits, slope = _logits(_product(key, query, transposed=True), problem)
            at = _Block(_number(entry) * BACKWARD, place.base, shape, 1, entry, warpgroup)
            logits = _forbid(logits, at, problem, _vectors(q_told, 0), k_told, partial)
            [sums] = _vectors([log_sum], 0)
            weights = jnp.exp2(logits - _over(sums, shape, 1))
            d_value = _add_product(d_value, weights.astype(key.dtype), gradient)
            weights = weights if slope is None else weights * slope
            [subtracted] = _vectors([along], 0)  # Late, to spare registers.
            d_weights = _over(-subtracted, shape, 1)
            d_weights = _add_product(d_weights, value, gradient, transposed=True)
            return _add_product(d_key, (weights * d_weights).astype(key.dtype), query), d_value

        zeros = _filled((ROWS, problem.width), 0.0, plgpu.Layout.WGMMA)
        ends = place.full * repeats, place.count * repeats
        d_key, d_value = _both_loops(*ends, ready, free, step, (zeros, zeros))
        key[...] = (d_key * problem.scale).astype(key.dtype)
        value[...] = d_value.astype(value.dtype)
        to = (x.at[place.batch, pl.ds(place.base, ROWS), place.head] for x in (key_out, value_out))
        _store(*zip((key, value), to, strict=True))

    _split(compute, lambda: _fetch_queries(order, arrays, stream, BACKWARD, ready, free))


# --- where, and who does what ---------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a program is: scalars.

    Attributes:
        batch: row of the batch.
        head: head of queries, or of keys in `key_gradients`.
        base: first token of this warpgroup's part of the tile.
        first: the tile's first entry in the list of blocks.
        full: how many of its blocks are full; they come first.
        count: how many blocks.
    """

    batch: Any
    head: Any
    base: Any
    first: Any
    full: Any
    count: Any


def _place(order: walk.Walk, warpgroup) -> _Place:
    row, batch, head = (lax.axis_index(name) for name in ('tile', 'batch', 'head'))
    tile, first, partial, end = (order.tiles[row, i] for i in range(4))
    base = tile * TILE + warpgroup * ROWS
    return _Place(batch, head, base, first, partial - first, end - first)


def _split(compute, fetch) -> None:
    """Runs `compute(warpgroup)` in the warpgroups that compute, and `fetch` in the third."""
    warpgroup = lax.axis_index('warpgroup')

    @pl.when(warpgroup < WARPGROUPS)
    def _():
        plgpu.set_max_registers(_REGISTERS['compute'], action='increase')
        compute(warpgroup)

    @pl.when(warpgroup == WARPGROUPS)
    def _():
        plgpu.set_max_registers(_REGISTERS['fetch'], action='decrease')
        fetch()


def _both_loops(full, count, ready, free, step, carry):
    """Returns the carry after the blocks that are full, and then those that are partial."""

    def turn(i, carry, partial):
        slot = lax.rem(i, STAGES)
        plgpu.barrier_wait(ready.at[slot])
        carry = step(i, slot, carry, partial)
        plgpu.barrier_arrive(free.at[slot])
        return carry

    carry = lax.fori_loop(0, full, functools.partial(turn, partial=False), carry)
    return lax.fori_loop(full, count, functools.partial(turn, partial=True), carry)


def _number(entry):
    """The number of a block."""
    return entry & ((1 << walk.NUMBER_BITS) - 1)


def _at(x, i):
    """Returns entry `i` of a reference, or of a tuple of them."""
    return tuple(part.at[i] for part in x) if isinstance(x, tuple) else x.at[i]


# --- copies ---------------------------------------------------------------------------------------


def _queries(arrays: Arrays, place: _Place, tokens, head) -> Arrays:
    """Returns what there is of some queries of a head."""
    wide, narrow = (place.batch, tokens, head), (place.batch, head, tokens)
    query, gradient, log_sum, along = (
        None if x is None else x.at[where]
        for x, where in (
            (arrays.query, wide),
            (arrays.gradient, wide),
            (arrays.log_sum, narrow),
            (arrays.along, narrow),
        )
    )
    told = tuple(x.at[place.batch, tokens] for x in arrays.tokens[:1])
    return Arrays(query, None, None, told, gradient, log_sum, along)


def _keys(arrays: Arrays, place: _Place, tokens, head) -> Arrays:
    """Returns what there is of some keys of a head."""
    key, value = (x.at[place.batch, tokens, head] for x in (arrays.key, arrays.value))
    return Arrays(None, key, value, tuple(x.at[place.batch, tokens] for x in arrays.tokens[1:]))


def _pairs(sources: tuple, targets: tuple) -> list[tuple[Any, Any]]:
    return list(zip(sources, targets, strict=True))


def _fetch(copies, barrier) -> None:
    """Copies pieces of global memory into shared memory, and waits for them."""
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


def _fetch_keys(order, arrays: Arrays, stream, size: int, ready, free) -> None:
    """Streams blocks of keys past a tile of queries."""
    place = _place(order, 0)
    key, value, told = stream
    head = lax.div(place.head, arrays.repeats)

    def copies(i):
        these = pl.ds(_number(order.blocks[place.first + i]) * size, size)
        found = _keys(arrays, place, these, head)
        return [(found.key, key), (found.value, value), *_pairs(found.tokens, told)]

    _fetch_all(place.count, copies, ready, free)


def _fetch_queries(order, arrays: Arrays, stream, size: int, ready, free) -> None:
    """Streams blocks of queries past a tile of keys: each for all heads of the group, in turn."""
    place, repeats = _place(order, 0), arrays.repeats
    query, gradient, log_sum, along, told = stream

    def copies(i):
        these = pl.ds(_number(order.blocks[place.first + lax.div(i, repeats)]) * size, size)
        found = _queries(arrays, place, these, place.head * repeats + lax.rem(i, repeats))
        return [
            (found.query, query),
            (found.gradient, gradient),
            (found.log_sum, log_sum),
            (found.along, along),
            *_pairs(found.tokens, told),
        ]

    _fetch_all(place.count * repeats, copies, ready, free)


def _fetch_all(count, copies, ready, free) -> None:
    """What the third warpgroup does: fills stages as they become free, and sees each of them freed."""

    @pl.loop(0, count + STAGES)
    def _(i):
        slot = lax.rem(i, STAGES)

        @pl.when(i >= STAGES)
        def _():
            plgpu.barrier_wait(free.at[slot])

        @pl.when(i < count)
        def _():
            for source, target in copies(i):
                plgpu.copy_gmem_to_smem(source, target.at[slot], ready.at[slot])


def _store(*copies) -> None:
    """Copies pieces of shared memory, just written, to global memory."""
    plgpu.commit_smem()
    for source, target in copies:
        plgpu.copy_smem_to_gmem(source, target)
    plgpu.wait_smem_to_gmem(0)


# --- logits and products --------------------------------------------------------------------------


class _Block(NamedTuple):
    """A block of pairs.

    Attributes:
        query: place of its first query, a scalar.
        key: of its first key.
        shape: of its logits; what streams past is along the last axis.
        q_axis: which axis is of queries.
        entry: of the list of blocks, a scalar.
        warpgroup: which part of the tile it is, a scalar.
    """

    query: Any
    key: Any
    shape: tuple[int, int]
    q_axis: int
    entry: Any
    warpgroup: Any


def _logits(scores, problem: Problem):
    """Returns logits times log2(e), and the slope of the cap, None without one.

    Args:
        scores: float32, products of queries and keys.
        problem: its mask is not looked at.
    """
    scale = problem.scale * _LOG2E
    if problem.softcap is None:
        return scores * scale, None
    # tanh of x: 1 - 2 / (exp(2x) + 1). The chip's own has 11 bits.
    capped = 1.0 - 2.0 / (jnp.exp2(scores * (2 * scale / problem.softcap)) + 1.0)
    return capped * (problem.softcap * _LOG2E), 1.0 - capped * capped


def _forbid(logits, at: _Block, problem: Problem, q_tokens, k_tokens, partial: bool):
    """Returns the logits, -inf where a query may not see a key.

    Args:
        logits: float32, of the block's shape.
        at: the block.
        problem: with the mask.
        q_tokens: a tuple of none or one, what is told of the queries, int32 `[queries]`.
        k_tokens: likewise of the keys.
        partial: the mask has a say.
    """
    known, allowed = walk.Told(), []
    if problem.tokens:
        q_told = _over(q_tokens[0], at.shape, at.q_axis)
        k_told = _over(k_tokens[0], at.shape, 1 - at.q_axis)
        if problem.segments:
            known = known._replace(same_segment=(q_told >> 1) == (k_told >> 1))
            allowed.append(known.same_segment)
        if problem.prefix:
            known = known._replace(in_prefix=(k_told & 1) == 1)
    if partial:
        q, k = (
            first + _spread(lax.broadcasted_iota(jnp.int32, at.shape, axis), plgpu.Layout.WGMMA)
            for first, axis in ((at.query, at.q_axis), (at.key, 1 - at.q_axis))
        )
        known = known._replace(drawn=_drawn(walk.count(problem.mask), at))
        allowed.append(walk.told(problem.mask).allows(q, k, known))
        if problem.source % TILE:
            allowed.append(k < problem.source)
    if not allowed:
        return logits
    return jnp.where(functools.reduce(jnp.bitwise_and, allowed), logits, -jnp.inf)


def _drawn(count: int, at: _Block) -> tuple[Any, ...]:
    """Returns bool, for each of `count` random blocks: what the block's entry says of its pairs."""
    if not count:
        return ()
    squares = at.shape[1] // walk.CELL
    square = _spread(lax.broadcasted_iota(jnp.int32, at.shape, 1), plgpu.Layout.WGMMA) // walk.CELL
    first = walk.NUMBER_BITS + at.warpgroup * squares
    return tuple(
        (at.entry >> (first + i * WARPGROUPS * squares + square)) & 1 == 1 for i in range(count)
    )


def _vectors(refs, axis: int):
    """Returns one-dimensional contents: of rows, where `axis` 1 is left out, or of columns."""
    return tuple(_spread(ref[...], plgpu.Layout.WGMMA.reduce(axis)) for ref in refs)


def _over(x, shape: tuple[int, int], axis: int):
    """Returns a vector that lies along `axis`, repeated to a matrix."""
    return lax.broadcast_in_dim(x, shape, (axis,))


def _filled(shape: tuple[int, ...], value: float, layout):
    return _spread(jnp.full(shape, value, jnp.float32), layout)


def _spread(x, layout):
    """Lays an array over the registers of a warpgroup."""
    return plgpu.layout_cast(x, layout)


def _product(a, b, transposed: bool = False):
    """Returns the float32 product of `[m, k]` and `[k, n]`, or `[n, k]` where that is transposed."""
    b = b.transpose((1, 0)) if transposed else b

    def multiply(acc):
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def _add_product(acc, a, b, transposed: bool = False):
    """Returns float32 `acc` plus the product of `[m, k]` and `[k, n]`, or `[n, k]`."""
    b = b.transpose((1, 0)) if transposed else b
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(acc))
