"""Block-sparse attention on NVIDIA Hopper: one kernel for the result, two for the gradients.

A tile of 128 tokens stays in shared memory while the blocks that the mask leaves for it stream past, told
by a list that is made of the mask (`lm/attention/walk.py`). Blocks that are full skip the mask; in others it
is evaluated from the places of their tokens. Two warpgroups compute, 64 tokens of the tile each, and a third
fetches ahead by TMA. Products run on the tensor cores (WGMMA), from 16 bits into float32; the softmax is
float32, in powers of two.

| kernel            | tile    | streams                                     | walks          |
|-------------------|---------|---------------------------------------------|----------------|
| `_forward_kernel` | queries | keys, values                                | rows           |
| `_query_kernel`   | queries | keys, values                                | rows           |
| `_key_kernel`     | keys    | queries, gradients, of each head of a group | columns        |

Written in Pallas for Mosaic GPU (`jax.experimental.pallas.mosaic_gpu`). The algorithms: Dao et al. 2022
(https://arxiv.org/abs/2205.14135), Dao 2023 (https://arxiv.org/abs/2307.08691) for the two backward
passes, Shah et al. 2024 (https://arxiv.org/abs/2407.08608) for the division of work on Hopper.

Letters: R heads of queries for each of the G heads of keys; `t` tokens of a block that streams past.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from lm.attention import walk
from lm.attention.block import PLAIN, Extras
from lm.attention.masks import Mask
from lm.attention.table import InPlace

WARPGROUPS = 2  # that compute; one more fetches.
ROWS = 64  # of a tile, for each of them: what one WGMMA instruction takes.
TILE = WARPGROUPS * ROWS
FORWARD, BACKWARD = 128, 64  # Tokens of a block that streams past.
STAGES = 2  # Blocks in shared memory at once.
WIDTHS = (64, 128)  # K
DTYPES = (jnp.bfloat16, jnp.float16)

_REGISTERS = {'compute': 240, 'fetch': 24}  # A thread's: at most 65,536 in the three warpgroups.
_LOG2E = math.log2(math.e)
# Below all logits, and finite: a row that sees nothing gets powers of two of -inf, which are 0, not NaN.
_LEAST = -1e30


# --- the function ---------------------------------------------------------------------------------


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


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    segments: tuple[jax.Array, jax.Array] | None = None,
    in_prefix: jax.Array | None = None,
    extras: Extras = PLAIN,
) -> jax.Array:
    """Returns `[B, T, H, K]`; the arguments are those of `lm.attention.attend`.

    Queries and keys are at places 0, 1, 2, ..., in bfloat16 or float16, and K is one of `WIDTHS`. Of
    extras, there are no slopes.
    """
    length, source = query.shape[1], key.shape[1]
    problem = Problem(
        mask,
        extras.softcap,
        query.shape[-1],
        length,
        source,
        segments=segments is not None,
        prefix=in_prefix is not None,
    )
    query = InPlace(length, TILE).take(query, 1)
    key, value = (InPlace(source, TILE).take(x, 1) for x in (key, value))
    tokens = _tokens(query, key, segments, in_prefix) if problem.tokens else ()
    return _attend(query, key, value, tokens, problem)[:, :length]


def _tokens(query, key, segments, in_prefix) -> tuple[jax.Array, jax.Array]:
    """Returns int32 `[B, T]` and `[B, S]`: twice the segment, and 1 more for a key of a prefix."""
    out = []
    for i, x in enumerate((query, key)):
        told = jnp.zeros(x.shape[:2], jnp.int32)
        if segments is not None:
            told = told.at[:, : segments[i].shape[1]].set(2 * segments[i])
        if i and in_prefix is not None:
            told = told.at[:, : in_prefix.shape[1]].add(in_prefix.astype(jnp.int32))
        out.append(told)
    return tuple(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query, key, value, tokens, problem):
    return forward(query, key, value, tokens, problem)[0]


def forward(query, key, value, tokens, problem: Problem):
    """Returns `[B, T, H, K]`, and what the backward pass needs.

    Args:
        query: `[B, T, H, K]`, T filled up to whole tiles.
        key: `[B, S, G, K]`, likewise.
        value: `[B, S, G, K]`.
        tokens: int32 `[B, T]` and `[B, S]`, as `_tokens` makes them, or nothing.
        problem: what the kernel is compiled for.
    """
    batch, length, heads, width = query.shape
    tile = _smem((WARPGROUPS, ROWS, width), query.dtype)
    stream = _smem((STAGES, FORWARD, width), query.dtype)
    run = plgpu.kernel(
        functools.partial(_forward_kernel, problem),
        out_type=(
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        scratch_types=(
            (tile, _vector(WARPGROUPS, ROWS, jnp.float32), _tile_tokens(problem)),
            (stream, stream, _stream_tokens(problem, FORWARD)),
            _barriers(2 + problem.tokens, tile=1 + problem.tokens),
        ),
        **_launch('attention_forward', length // TILE, batch, heads),
    )
    order = walk.walk(problem.mask, problem.length, problem.source, (TILE, FORWARD), columns=False)
    out, log_sum = run(*order, query, key, value, tokens)
    return out, (query, key, value, tokens, out, log_sum)


def _backward(problem, residuals, gradient):
    query, key, value, tokens, out, log_sum = residuals
    along = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    along = jnp.swapaxes(along, 1, 2)  # [B, H, T]
    arrays = (query, key, value, gradient, log_sum, along, tokens)
    return query_gradient(arrays, problem), *key_gradients(arrays, problem), None


_attend.defvjp(forward, _backward)


def query_gradient(arrays, problem: Problem) -> jax.Array:
    """Returns `[B, T, H, K]`.

    Args:
        arrays: query, key, value, and the gradient of the result, of its shape; float32 `[B, H, T]`: the
            log-sum-exps to base 2, and the sums of gradient times result over K; tokens.
        problem: what the kernel is compiled for.
    """
    query = arrays[0]
    batch, length, heads, width = query.shape
    tile = _smem((WARPGROUPS, ROWS, width), query.dtype)
    numbers = _vector(WARPGROUPS, ROWS, jnp.float32)
    stream = _smem((STAGES, BACKWARD, width), query.dtype)
    run = plgpu.kernel(
        functools.partial(_query_kernel, problem),
        out_type=jax.ShapeDtypeStruct(query.shape, query.dtype),
        scratch_types=(
            (tile, tile, numbers, numbers, _tile_tokens(problem)),
            (stream, stream, _stream_tokens(problem, BACKWARD)),
            _barriers(2 + problem.tokens, tile=4 + problem.tokens),
        ),
        **_launch('attention_query_gradient', length // TILE, batch, heads),
    )
    order = walk.walk(problem.mask, problem.length, problem.source, (TILE, BACKWARD), columns=False)
    return run(*order, *arrays)


def key_gradients(arrays, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of key and value, `[B, S, G, K]`; the arguments are `query_gradient`'s."""
    key = arrays[1]
    batch, source, groups, width = key.shape
    tile = _smem((WARPGROUPS, ROWS, width), key.dtype)
    stream = _smem((STAGES, BACKWARD, width), key.dtype)
    numbers = _vector(STAGES, BACKWARD, jnp.float32)
    run = plgpu.kernel(
        functools.partial(_key_kernel, problem),
        out_type=(jax.ShapeDtypeStruct(key.shape, key.dtype),) * 2,
        scratch_types=(
            (tile, tile, _tile_tokens(problem)),
            (stream, stream, numbers, numbers, _stream_tokens(problem, BACKWARD)),
            _barriers(4 + problem.tokens, tile=2 + problem.tokens),
        ),
        **_launch('attention_key_gradients', source // TILE, batch, groups),
    )
    order = walk.walk(problem.mask, problem.length, problem.source, (BACKWARD, TILE), columns=True)
    return run(*order, *arrays)


# --- shared memory and launch ---------------------------------------------------------------------


def _smem(shape: tuple[int, ...], dtype: Any) -> plgpu.SMEM:
    """Shared memory laid out as WGMMA reads it: tiles of 8 rows of 128 bytes."""
    tiling = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(128)))


def _vector(count: int, size: int, dtype: Any) -> plgpu.SMEM:
    return plgpu.SMEM((count, size), dtype)


def _tile_tokens(problem: Problem) -> tuple[plgpu.SMEM, ...]:
    return (_vector(WARPGROUPS, ROWS, jnp.int32),) * problem.tokens


def _stream_tokens(problem: Problem, size: int) -> tuple[plgpu.SMEM, ...]:
    return (_vector(STAGES, size, jnp.int32),) * problem.tokens


def _barriers(stream: int, tile: int) -> tuple[plgpu.Barrier, ...]:
    """Barriers: a tile is there, a stage is there, a stage is free. The numbers are of copies."""
    return (
        plgpu.Barrier(num_arrivals=tile, num_barriers=WARPGROUPS),
        plgpu.Barrier(num_arrivals=stream, num_barriers=STAGES),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=STAGES),
    )


def _launch(name: str, tiles: int, batch: int, heads: int) -> dict[str, Any]:
    """The grid. Its last axis runs fastest: heads of one tile share their keys in the cache."""
    return {
        'kernel_name': name,
        'grid': (tiles, batch, heads),
        'grid_names': ('tile', 'batch', 'head'),
        'num_threads': WARPGROUPS + 1,
        'thread_name': 'warpgroup',
        'compiler_params': plgpu.CompilerParams(approx_math=True),
    }


# --- the kernels ----------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a program is: scalars.

    Attributes:
        batch: row of the batch.
        head: head of queries, or of keys in `_key_kernel`.
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


def _place(tiles, warpgroup) -> _Place:
    row, batch, head = (lax.axis_index(name) for name in ('tile', 'batch', 'head'))
    tile, first, partial, end = (tiles[row, i] for i in range(4))
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


def _forward_kernel(
    problem, tiles, blocks, query, key, value, tokens, out, log_sum, tile, stream, barriers
):
    """out `[B, T, H, K]`, log_sum float32 `[B, H, T]`, to base 2."""
    here, ready, free = barriers
    k_smem, v_smem, k_tokens = stream
    shape = (ROWS, FORWARD)

    def compute(warpgroup):
        place = _place(tiles, warpgroup)
        q_smem, sum_smem, q_tokens = (_at(x, warpgroup) for x in tile)
        mine = pl.ds(place.base, ROWS)
        copies = [(query.at[place.batch, mine, place.head], q_smem)]
        copies += [(x.at[place.batch, mine], y) for x, y in zip(tokens[:1], q_tokens, strict=True)]
        _fetch(copies, here.at[warpgroup])
        told = _vectors(q_tokens, 1)

        def step(i, slot, carry, partial):
            total, top, acc = carry
            logits, _ = _logits(_product(q_smem, k_smem.at[slot], transposed=True), problem)
            entry = blocks[place.first + i]
            at = _Block(place.base, _number(entry) * FORWARD, shape, 0, entry, warpgroup)
            logits = _forbid(logits, at, problem, told, _vectors(_at(k_tokens, slot), 0), partial)
            new_top = jnp.maximum(top, jnp.max(logits, axis=1))
            weights = jnp.exp2(logits - _over(new_top, shape, 0))
            shrink = jnp.exp2(top - new_top)
            total = total * shrink + jnp.sum(weights, axis=1)
            acc *= _over(shrink, acc.shape, 0)
            acc = _add_product(acc, weights.astype(query.dtype), v_smem.at[slot])
            return total, new_top, acc

        row = plgpu.Layout.WGMMA.reduce(1)
        carry = (
            _filled((ROWS,), 0.0, row),
            _filled((ROWS,), _LEAST, row),
            _filled((ROWS, query.shape[-1]), 0.0, plgpu.Layout.WGMMA),
        )
        total, top, acc = _both_loops(place.full, place.count, ready, free, step, carry)
        total = jnp.where(total == 0.0, 1.0, total)
        sum_smem[...] = top + jnp.log2(total)
        q_smem[...] = (acc / _over(total, acc.shape, 0)).astype(query.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_smem, out.at[place.batch, mine, place.head])
        plgpu.copy_smem_to_gmem(sum_smem, log_sum.at[place.batch, place.head, mine])
        plgpu.wait_smem_to_gmem(0)

    def fetch():
        place = _place(tiles, 0)
        group = _group(place.head, query, key)

        def copies(i):
            these = pl.ds(_number(blocks[place.first + i]) * FORWARD, FORWARD)
            found = [
                (x.at[place.batch, these, group], y) for x, y in ((key, k_smem), (value, v_smem))
            ]
            told = zip(tokens[1:], k_tokens, strict=True)
            return found + [(x.at[place.batch, these], y) for x, y in told]

        _fetch_all(place.count, copies, ready, free)

    _split(compute, fetch)


def _query_kernel(
    problem,
    tiles,
    blocks,
    query,
    key,
    value,
    gradient,
    log_sum,
    along,
    tokens,
    out,
    tile,
    stream,
    barriers,
):
    """out `[B, T, H, K]`, the gradient of the query."""
    here, ready, free = barriers
    k_smem, v_smem, k_tokens = stream
    shape = (ROWS, BACKWARD)

    def compute(warpgroup):
        place = _place(tiles, warpgroup)
        q_smem, g_smem, sum_smem, along_smem, q_tokens = (_at(x, warpgroup) for x in tile)
        mine = pl.ds(place.base, ROWS)
        copies = [
            (query.at[place.batch, mine, place.head], q_smem),
            (gradient.at[place.batch, mine, place.head], g_smem),
            (log_sum.at[place.batch, place.head, mine], sum_smem),
            (along.at[place.batch, place.head, mine], along_smem),
        ]
        copies += [(x.at[place.batch, mine], y) for x, y in zip(tokens[:1], q_tokens, strict=True)]
        _fetch(copies, here.at[warpgroup])
        sums, subtracted = _vectors((sum_smem, along_smem), 1)
        told = _vectors(q_tokens, 1)

        def step(i, slot, acc, partial):
            logits, slope = _logits(_product(q_smem, k_smem.at[slot], transposed=True), problem)
            entry = blocks[place.first + i]
            at = _Block(place.base, _number(entry) * BACKWARD, shape, 0, entry, warpgroup)
            logits = _forbid(logits, at, problem, told, _vectors(_at(k_tokens, slot), 0), partial)
            weights = jnp.exp2(logits - _over(sums, shape, 0))
            weights = weights if slope is None else weights * slope
            d_weights = _over(-subtracted, shape, 0)
            d_weights = _add_product(d_weights, g_smem, v_smem.at[slot], transposed=True)
            d_logits = weights * d_weights
            return _add_product(acc, d_logits.astype(query.dtype), k_smem.at[slot])

        acc = _filled((ROWS, query.shape[-1]), 0.0, plgpu.Layout.WGMMA)
        acc = _both_loops(place.full, place.count, ready, free, step, acc)
        q_smem[...] = (acc * problem.scale).astype(query.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_smem, out.at[place.batch, mine, place.head])
        plgpu.wait_smem_to_gmem(0)

    def fetch():
        place = _place(tiles, 0)
        group = _group(place.head, query, key)

        def copies(i):
            these = pl.ds(_number(blocks[place.first + i]) * BACKWARD, BACKWARD)
            found = [
                (x.at[place.batch, these, group], y) for x, y in ((key, k_smem), (value, v_smem))
            ]
            told = zip(tokens[1:], k_tokens, strict=True)
            return found + [(x.at[place.batch, these], y) for x, y in told]

        _fetch_all(place.count, copies, ready, free)

    _split(compute, fetch)


def _key_kernel(
    problem,
    tiles,
    blocks,
    query,
    key,
    value,
    gradient,
    log_sum,
    along,
    tokens,
    d_key,
    d_value,
    tile,
    stream,
    barriers,
):
    """d_key and d_value `[B, S, G, K]`. A block of queries comes once for each head of the group."""
    repeats = query.shape[2] // key.shape[2]
    here, ready, free = barriers
    q_smem, g_smem, sum_smem, along_smem, q_tokens = stream
    shape = (ROWS, BACKWARD)  # Keys are the rows.

    def compute(warpgroup):
        place = _place(tiles, warpgroup)
        k_smem, v_smem, k_tokens = (_at(x, warpgroup) for x in tile)
        mine = pl.ds(place.base, ROWS)
        copies = [
            (key.at[place.batch, mine, place.head], k_smem),
            (value.at[place.batch, mine, place.head], v_smem),
        ]
        copies += [(x.at[place.batch, mine], y) for x, y in zip(tokens[1:], k_tokens, strict=True)]
        _fetch(copies, here.at[warpgroup])
        told = _vectors(k_tokens, 1)

        def step(i, slot, carry, partial):
            d_k, d_v = carry
            logits, slope = _logits(_product(k_smem, q_smem.at[slot], transposed=True), problem)
            entry = blocks[place.first + lax.div(i, repeats)]
            at = _Block(_number(entry) * BACKWARD, place.base, shape, 1, entry, warpgroup)
            logits = _forbid(logits, at, problem, _vectors(_at(q_tokens, slot), 0), told, partial)
            [sums] = _vectors([sum_smem.at[slot]], 0)
            weights = jnp.exp2(logits - _over(sums, shape, 1))
            d_v = _add_product(d_v, weights.astype(key.dtype), g_smem.at[slot])
            weights = weights if slope is None else weights * slope
            [subtracted] = _vectors([along_smem.at[slot]], 0)  # Late, to spare registers.
            d_weights = _over(-subtracted, shape, 1)
            d_weights = _add_product(d_weights, v_smem, g_smem.at[slot], transposed=True)
            d_logits = weights * d_weights
            return _add_product(d_k, d_logits.astype(key.dtype), q_smem.at[slot]), d_v

        zeros = _filled((ROWS, key.shape[-1]), 0.0, plgpu.Layout.WGMMA)
        ends = place.full * repeats, place.count * repeats
        d_k, d_v = _both_loops(*ends, ready, free, step, (zeros, zeros))
        k_smem[...] = (d_k * problem.scale).astype(key.dtype)
        v_smem[...] = d_v.astype(key.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(k_smem, d_key.at[place.batch, mine, place.head])
        plgpu.copy_smem_to_gmem(v_smem, d_value.at[place.batch, mine, place.head])
        plgpu.wait_smem_to_gmem(0)

    def fetch():
        place = _place(tiles, 0)

        def copies(i):
            these = pl.ds(_number(blocks[place.first + lax.div(i, repeats)]) * BACKWARD, BACKWARD)
            head = place.head * repeats + lax.rem(i, repeats)
            wide = ((query, q_smem), (gradient, g_smem))
            narrow = ((log_sum, sum_smem), (along, along_smem))
            told = zip(tokens[:1], q_tokens, strict=True)
            return (
                [(x.at[place.batch, these, head], y) for x, y in wide]
                + [(x.at[place.batch, head, these], y) for x, y in narrow]
                + [(x.at[place.batch, these], y) for x, y in told]
            )

        _fetch_all(place.count * repeats, copies, ready, free)

    _split(compute, fetch)


# --- what the kernels are made of -----------------------------------------------------------------


def _group(head, query, key):
    """The head of keys that a head of queries looks at."""
    return lax.div(head, query.shape[2] // key.shape[2])


def _at(x, i):
    """Returns entry `i` of a reference, or of a tuple of them."""
    return tuple(part.at[i] for part in x) if isinstance(x, tuple) else x.at[i]


def _fetch(copies, barrier) -> None:
    """Copies pieces of global memory into shared memory, and waits for them."""
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


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


def _number(entry):
    """The number of a block."""
    return entry & ((1 << walk.NUMBER_BITS) - 1)


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
