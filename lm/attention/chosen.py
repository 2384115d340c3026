"""Attention over blocks of keys that were chosen: work and memory follow the choice.

What chooses is elsewhere (`topk.py`, `nsa.py`): here are a softmax over the blocks that each chunk of
queries was given, its gradient, and how the best blocks are picked from scores. Queries are gone through
in a loop, whose steps fetch whole blocks. A choice has no gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention import block
from lm.attention.block import PLAIN, Extras, Segments

NEVER = np.iinfo(np.int32).max  # A place that no query reaches.


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    chosen: jax.Array,
    *,
    size: int,
    every: int,
    segments: Segments | None = None,
    places: jax.Array | None = None,
    extras: Extras = PLAIN,
) -> jax.Array:
    """Returns `[B, T, H, K]`: each query sees its own and earlier places in the blocks of its chunk.

    Args:
        query: `[B, T, H, K]`.
        key: `[B, S, G, K]`, at places 0, 1, 2, ...
        value: `[B, S, G, K]`.
        chosen: int32 `[B, G, N, n]`, blocks of `size` keys for each chunk of `every` queries; -1 is none.
            No block is named twice.
        size: tokens.
        every: tokens.
        segments: int32 `[B, T]` and `[B, S]`; tokens of different ones do not see each other.
        places: int32 `[B or 1, T]`, of queries; None is 0, 1, 2, ... One at -1 sees nothing.
        extras: of the logits.
    """
    batch, length, heads, width = query.shape
    groups, chunks = chosen.shape[1:3]
    together = min(max(size // every, 1), chunks)  # Chunks of a step.
    steps = -(-chunks // together)

    def in_steps(x: jax.Array, axis: int, count: int, fill: int = 0) -> jax.Array:
        """Returns `[steps, B * together, ...]`, with `count` entries of each chunk along `axis`."""
        x = jnp.moveaxis(x, axis, 1)
        missing = steps * together * count - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
        x = x.reshape(batch, steps, together, count, *x.shape[2:])
        x = jnp.moveaxis(x, 1, 0)
        return x.reshape(steps, batch * together, count, *x.shape[4:])

    def in_blocks(x: jax.Array) -> jax.Array:
        """Returns `[..., blocks, size, ...]` of `[B, ..., S, ...]`, the axis before the last of keys."""
        axis = min(x.ndim - 1, 2)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -x.shape[axis] % size)
        return jnp.pad(x, widths).reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])

    if places is None:
        places = jnp.arange(length, dtype=jnp.int32)[None]
    places = jnp.broadcast_to(places, (batch, length))
    q_segments, k_segments = segments or (None, None)
    facts = (
        jnp.squeeze(in_steps(chosen, 2, 1, fill=-1), 2),  # [steps, Bc, G, n]
        in_steps(places, 1, every, fill=-1),  # [steps, Bc, t]
        None if q_segments is None else in_steps(q_segments, 1, every),
        None if k_segments is None else in_blocks(k_segments),  # [B, blocks, size]
    )
    query = in_steps(query, 1, every)  # [steps, Bc, t, H, K]
    query = query.reshape(*query.shape[:3], groups, heads // groups, width)
    query = jnp.transpose(query, (0, 1, 3, 4, 2, 5))  # [steps, Bc, G, R, t, K]
    shape = query.shape
    key, value = (in_blocks(jnp.swapaxes(x, 1, 2)) for x in (key, value))
    out = _attend(query.reshape(*shape[:3], -1, width), key, value, facts, extras)
    out = jnp.transpose(out.reshape(shape), (1, 0, 2, 3, 4, 5))
    out = out.reshape(batch, together, steps, *shape[2:])
    out = jnp.transpose(out, (0, 2, 1, 5, 3, 4, 6))  # [B, steps, c, t, G, R, K]
    return out.reshape(batch, -1, heads, width)[:, :length]


def best(scores: jax.Array, own: jax.Array, count: int) -> jax.Array:
    """Returns int32 `[B, G, N, n]`, blocks of the highest scores among a query's own and earlier ones.

    Args:
        scores: float32 `[B, G, N, M]`, of M blocks for each of N queries; -inf is never chosen, and
            infinity always. A query's own block needs no score, and comes first.
        own: int32 `[B or 1, N]`, the block that each query is in.
        count: n, at most M; where there are fewer blocks, the rest are -1.
    """
    own, blocks = own[:, None, :, None], jnp.arange(scores.shape[-1])
    scores = jnp.where(blocks > own, -jnp.inf, scores)
    # Infinity is taken by those that are always chosen: the own block is named apart.
    scores, chosen = jax.lax.top_k(jnp.where(blocks == own, -jnp.inf, scores), count - 1)
    chosen = jnp.where(scores == -jnp.inf, -1, chosen)
    own = jnp.broadcast_to(own, (*chosen.shape[:-1], 1))
    return jnp.concatenate([own, chosen], axis=-1).astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query, key, value, facts, extras):
    return _forward(query, key, value, facts, extras)[0]


def _forward(query, key, value, facts, extras):
    def step(_, row):
        q, *row = row
        k, v = (_fetch(x, row[0]) for x in (key, value))
        out, log_sum = block.one_forward(q, k, v, *_pairs(row, facts[3], key.shape[3]), extras)
        return None, (out.astype(query.dtype), log_sum)

    _, (out, log_sum) = jax.lax.scan(step, None, (query, *facts[:3]))
    return out, (query, key, value, facts, out, log_sum)


def _backward(extras, residuals, gradient):
    query, key, value, facts, out, log_sum = residuals

    def step(carry, row):
        d_key, d_value = carry
        q, g, o, sums, *row = row
        along = block.along_rows(g, o)
        k, v = (_fetch(x, row[0]) for x in (key, value))
        pairs = _pairs(row, facts[3], key.shape[3])
        d_q, d_k, d_v = block.one_backward(q, k, v, g, along, sums, *pairs, extras)
        return (_add(d_key, d_k, row[0]), _add(d_value, d_v, row[0])), d_q.astype(query.dtype)

    transposed = jnp.zeros(jnp.swapaxes(key, 3, 4).shape, jnp.float32)  # [B, G, blocks, K, size]
    (d_key, d_value), d_query = jax.lax.scan(
        step, (transposed, transposed), (query, gradient, out, log_sum, *facts[:3])
    )
    d_key, d_value = (jnp.swapaxes(x, 3, 4) for x in (d_key, d_value))
    return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype), None


_attend.defvjp(_forward, _backward)


def _pairs(row, k_segments, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns bool `[Bc, G, t, s]`, which pairs are allowed, and int `[Bc, G, t, s]`, their distance."""
    chosen, places, q_segments = row
    k = chosen[..., None] * size + jnp.arange(size)
    k = jnp.where(chosen[..., None] < 0, NEVER, k)
    q, k = places[:, None, :, None], k.reshape(*chosen.shape[:2], 1, -1)
    allowed = k <= q
    if q_segments is not None:
        shape = (len(k_segments), chosen.shape[1], *k_segments.shape[1:], 1)
        k_segments = jnp.broadcast_to(k_segments[:, None, :, :, None], shape)
        k_segments = _fetch(k_segments, chosen)[..., 0]
        allowed &= q_segments[:, None, :, None] == k_segments[:, :, None]
    return allowed, q - k


def _fetch(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """Returns `[Bc, G, n * size, K]` of `[B, G, blocks, size, K]`: blocks side by side."""
    chosen = jnp.maximum(chosen, 0).reshape(len(x), -1, *chosen.shape[1:])  # [B, c, G, n]
    found = jax.vmap(jax.vmap(lambda x, i: x[i], (0, 1), 1))(x, chosen)  # [B, c, G, n, size, K]
    return found.reshape(-1, x.shape[1], chosen.shape[-1] * x.shape[3], x.shape[4])


def _add(x: jax.Array, new: jax.Array, chosen: jax.Array) -> jax.Array:
    """Returns `[B, G, blocks, K, size]` with `[Bc, G, K, n * size]` added at the chosen blocks."""
    batch, groups, _, width, size = x.shape
    chosen = jnp.maximum(chosen, 0).reshape(batch, -1, groups, chosen.shape[-1])
    new = new.reshape(*chosen.shape[:3], width, -1, size)  # [B, c, G, K, n, size]
    new = jnp.swapaxes(new, 3, 4)
    return jax.vmap(jax.vmap(lambda x, i, new: x.at[i].add(new), (0, 1, 1)))(x, chosen, new)
