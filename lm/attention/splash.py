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
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.attention import block, table
from lm.attention.block import FORBIDDEN, PLAIN, Extras
from lm.attention.masks import Full, Mask, Prefix, Segments
from lm.attention.splash_parts import layout_of, orders_of, parts_of
from lm.mesh import ROWS


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
    if tokens_known and table.holds(mask, Prefix):
        return "does not know which tokens are a prefix: use 'sparse'."
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return f"needs config.model.dtype = 'float32' or 'bfloat16', not {jnp.dtype(dtype)}."
    if platform != 'tpu':
        return f"needs a TPU, and this is a {platform.upper()}: use 'auto'."
    return ''


def pairs(mask: Mask, length: int, source: int) -> int:
    """Returns how many pairs the kernel computes, forward, allowed or not, on one device."""
    mask = table.replace(mask, Segments(), Full())
    return sum(layout_of(*orders, 1).pairs for orders in orders_of(mask, length, source, 1))


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
    split, parts = how.split, parts_of(how.mask, query.shape[1], key.shape[1], how.split.shards)
    run = _over_mesh(
        functools.partial(_forward_here, parts, how),
        (P(split.sequence), split.queries, split.keys, split.keys, split.tokens),
        (split.queries, split.sums),
    )
    out, log_sum = run([part.tables for part in parts], query, key, value, segments)
    return out, (query, key, value, segments, out, log_sum)


def _backward(how, residuals, gradient):
    query, key, value, segments, out, log_sum = residuals
    split, parts = how.split, parts_of(how.mask, query.shape[1], key.shape[1], how.split.shards)
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
    segments = _whole_segments(segments, how.split)
    outs, log_sums = [], []
    for part, arrays in zip(parts, tables, strict=True):
        out, log_sum = jax.vmap(functools.partial(_kernel, part, how, arrays))(
            part.queries(scaled, 2), part.keys(key, 2), part.keys(value, 2), part.tokens(segments)
        )
        seen = log_sum > FORBIDDEN / 2  # Not where a row sees nothing, nor where it is NaN.
        out, log_sum = part.put_queries(out, 2), part.put_queries(log_sum, 2)
        seen = part.put_queries(seen, 2)
        outs.append(jnp.where(seen[..., None], out.astype(jnp.float32), 0))
        log_sums.append(jnp.where(seen, log_sum, FORBIDDEN / 2)[..., None])
    out, log_sum = block.merge(outs, log_sums, scaled.shape)
    return _heads_first(out.astype(query.dtype)), log_sum[..., 0]


def _backward_here(parts, how, tables, query, key, value, segments, out, log_sum, gradient):
    """Returns gradients in the shapes and dtypes of query, key and value."""
    scaled, out, gradient = (_heads_first(x) for x in (_scaled(query), out, gradient))
    k, v = (_heads_first(_whole_row(x, how.split)) for x in (key, value))
    # Exponentials of the logits less this are 0 in a row that sees nothing.
    log_sum = jnp.where(log_sum > 0.9 * FORBIDDEN / 2, log_sum, -FORBIDDEN / 4)
    segments = _whole_segments(segments, how.split)
    d_query, d_key, d_value = (jnp.zeros(x.shape, jnp.float32) for x in (scaled, k, v))
    for part, arrays in zip(parts, tables, strict=True):
        new_q, new_k, new_v = jax.vmap(functools.partial(_kernel_gradient, part, how, arrays))(
            part.queries(scaled, 2),
            part.keys(k, 2),
            part.keys(v, 2),
            part.tokens(segments),
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


def _whole_segments(segments, split: _Split):
    """Returns int32 `[B, T]`, of a device's queries, and `[B, S]`, of the keys of the row; or None."""
    if segments is None:
        return None
    query, key = (x.astype(jnp.int32) for x in segments)
    return query, _whole_row(key, split)


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
