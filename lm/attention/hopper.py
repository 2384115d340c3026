"""Block-sparse attention on NVIDIA Hopper, by three kernels (`lm/attention/hopper_kernels.py`).

They work with queries, keys and values as they lie, `[B, T, H, K]`, filled up to whole tiles of tokens. The
forward pass leaves one number a query, the log-sum-exp to base 2; the backward pass makes the softmax again
from it, once for the queries and once for the keys.
"""

import functools
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from lm.attention import hopper_kernels as kernels
from lm.attention import walk
from lm.attention.block import PLAIN, Extras
from lm.attention.hopper_kernels import (
    BACKWARD,
    FORWARD,
    ROWS,
    STAGES,
    TILE,
    WARPGROUPS,
    Arrays,
    Problem,
)
from lm.attention.masks import Mask
from lm.attention.table import InPlace

WIDTHS = (64, 128)  # K


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
    tokens = _tokens_of(query, key, segments, in_prefix) if problem.tokens else ()
    return _attend(Arrays(query, key, value, tokens), problem)[:, :length]


def _tokens_of(query, key, segments, in_prefix) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens of `Arrays`."""
    out = []
    for i, x in enumerate((query, key)):
        told = jnp.zeros(x.shape[:2], jnp.int32)
        if segments is not None:
            told = told.at[:, : segments[i].shape[1]].set(2 * segments[i])
        if i and in_prefix is not None:
            told = told.at[:, : in_prefix.shape[1]].add(in_prefix.astype(jnp.int32))
        out.append(told)
    return tuple(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(arrays, problem):
    return forward(arrays, problem)[0]


def _forward(arrays, problem):
    out, log_sum = forward(arrays, problem)
    return out, (arrays._replace(log_sum=log_sum), out)


def _backward(problem, residuals, gradient):
    arrays, out = residuals
    along = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    arrays = arrays._replace(gradient=gradient, along=jnp.swapaxes(along, 1, 2))
    d_key, d_value = key_gradients(arrays, problem)
    return (Arrays(query_gradient(arrays, problem), d_key, d_value, None),)


_attend.defvjp(_forward, _backward)


def forward(arrays: Arrays, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Returns `[B, T, H, K]`, and float32 `[B, H, T]`, log-sum-exps to base 2."""
    query = arrays.query
    batch, length, heads, _ = query.shape
    rows, stream = _smem(WARPGROUPS, ROWS, query), _smem(STAGES, FORWARD, query)
    run = plgpu.kernel(
        functools.partial(kernels.forward, problem),
        out_type=(_like(query), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)),
        scratch_types=(
            (rows, _numbers(WARPGROUPS, ROWS), _tokens_smem(problem, WARPGROUPS, ROWS)),
            (stream, stream, _tokens_smem(problem, STAGES, FORWARD)),
            _barriers(1 + problem.tokens, 2 + problem.tokens),
        ),
        **_launch('attention_forward', length // TILE, batch, heads),
    )
    order = walk.walk(problem.mask, problem.length, problem.source, (TILE, FORWARD), columns=False)
    return run(order, arrays)


def query_gradient(arrays: Arrays, problem: Problem) -> jax.Array:
    """Returns `[B, T, H, K]`."""
    query = arrays.query
    batch, length, heads, _ = query.shape
    rows, stream = _smem(WARPGROUPS, ROWS, query), _smem(STAGES, BACKWARD, query)
    numbers = _numbers(WARPGROUPS, ROWS)
    run = plgpu.kernel(
        functools.partial(kernels.query_gradient, problem),
        out_type=_like(query),
        scratch_types=(
            (rows, rows, numbers, numbers, _tokens_smem(problem, WARPGROUPS, ROWS)),
            (stream, stream, _tokens_smem(problem, STAGES, BACKWARD)),
            _barriers(4 + problem.tokens, 2 + problem.tokens),
        ),
        **_launch('attention_query_gradient', length // TILE, batch, heads),
    )
    order = walk.walk(problem.mask, problem.length, problem.source, (TILE, BACKWARD), columns=False)
    return run(order, arrays)


def key_gradients(arrays: Arrays, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of key and value, `[B, S, G, K]`."""
    key = arrays.key
    batch, source, groups, _ = key.shape
    rows, stream = _smem(WARPGROUPS, ROWS, key), _smem(STAGES, BACKWARD, key)
    numbers = _numbers(STAGES, BACKWARD)
    run = plgpu.kernel(
        functools.partial(kernels.key_gradients, problem),
        out_type=(_like(key), _like(key)),
        scratch_types=(
            (rows, rows, _tokens_smem(problem, WARPGROUPS, ROWS)),
            (stream, stream, numbers, numbers, _tokens_smem(problem, STAGES, BACKWARD)),
            _barriers(2 + problem.tokens, 4 + problem.tokens),
        ),
        **_launch('attention_key_gradients', source // TILE, batch, groups),
    )
    order = walk.walk(problem.mask, problem.length, problem.source, (BACKWARD, TILE), columns=True)
    return run(order, arrays)


# --- shared memory and launch ---------------------------------------------------------------------


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _smem(count: int, size: int, like: jax.Array) -> plgpu.SMEM:
    """`[count, size, K]`, laid out as WGMMA reads it: in tiles of 8 rows of 128 bytes."""
    tiling = plgpu.TilingTransform((8, 128 // like.dtype.itemsize))
    shape = (count, size, like.shape[-1])
    return plgpu.SMEM(shape, like.dtype, transforms=(tiling, plgpu.SwizzleTransform(128)))


def _numbers(count: int, size: int) -> plgpu.SMEM:
    return plgpu.SMEM((count, size), jnp.float32)


def _tokens_smem(problem: Problem, count: int, size: int) -> tuple[plgpu.SMEM, ...]:
    return (plgpu.SMEM((count, size), jnp.int32),) * problem.tokens


def _barriers(tile: int, stage: int) -> tuple[plgpu.Barrier, ...]:
    """Barriers: a tile is there, a stage is there, a stage is free.

    Args:
        tile: copies that it is made of, of each warpgroup.
        stage: likewise.
    """
    return (
        plgpu.Barrier(num_arrivals=tile, num_barriers=WARPGROUPS),
        plgpu.Barrier(num_arrivals=stage, num_barriers=STAGES),
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
