"""Dense attention, a block of queries at a time: no `[T, S]` array, no work beyond what a block sees.

Each block looks at the keys between the first and the last that any of its queries sees, so that a causal
mask costs half. Blocks are unrolled, which is faster than the loop of `lm/attention/sparse.py` where most
blocks are full. Made of XLA's own operations, so it runs everywhere; on CPU, where a block stays in cache,
it is two to three times faster than the plain form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention import block
from lm.attention.block import PLAIN, Extras
from lm.attention.masks import EMPTY, Known, Mask, Range

_LEAST_BLOCK = 128  # Queries: less is too little for a matrix product.
_MOST_BLOCKS = 16  # Each is compiled by itself.
_KEYS = 64  # What a block sees is rounded up to so many keys.


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

    Queries and keys are at places 0, 1, 2, ...
    """
    groups = key.shape[2]
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, G, S, K]
    tokens = (*(segments or (None, None)), in_prefix)
    out = _attend(block.split_heads(query, groups), key, value, tokens, mask, extras)
    return block.join_heads(out)


def pairs(mask: Mask, length: int, source: int) -> int:
    """Returns how many pairs are computed for T = `length` queries and S = `source` keys."""
    return sum(
        (rows.stop - rows.start) * (keys.stop - keys.start)
        for rows, keys in _blocks(length, source, mask)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, tokens, mask, extras):
    return _forward(query, key, value, tokens, mask, extras)[0]


def _forward(query, key, value, tokens, mask, extras):
    outs, log_sums = [], []
    for rows, keys in _blocks(query.shape[3], key.shape[2], mask):
        pairs = _pairs(rows, keys, tokens, mask)
        out, log_sum = block.forward(
            _rows(query, rows), key[:, :, keys], value[:, :, keys], *pairs, extras
        )
        outs.append(out.astype(query.dtype))
        log_sums.append(log_sum)
    return _join(outs, query.shape), (query, key, value, tokens, tuple(outs), tuple(log_sums))


def _backward(mask, extras, residuals, gradient):
    query, key, value, tokens, outs, log_sums = residuals
    d_query = []
    d_key = d_value = jnp.zeros(jnp.swapaxes(key, 2, 3).shape, jnp.float32)  # [B, G, K, S]
    blocks = _blocks(query.shape[3], key.shape[2], mask)
    for (rows, keys), out, log_sum in zip(blocks, outs, log_sums, strict=True):
        g = _rows(gradient, rows)
        along = jnp.sum(g.astype(jnp.float32) * out, axis=-1, keepdims=True)
        d_q, d_k, d_v = block.backward(
            _rows(query, rows),
            key[:, :, keys],
            value[:, :, keys],
            g,
            along,
            log_sum,
            *_pairs(rows, keys, tokens, mask),
            extras,
        )
        d_query.append(d_q)
        d_key = d_key.at[..., keys].add(d_k)
        d_value = d_value.at[..., keys].add(d_v)
    d_key, d_value = jnp.swapaxes(d_key, 2, 3), jnp.swapaxes(d_value, 2, 3)
    return (
        _join(d_query, query.shape).astype(query.dtype),
        d_key.astype(key.dtype),
        d_value.astype(value.dtype),
        None,
    )


_attend.defvjp(_forward, _backward)


@functools.lru_cache(maxsize=256)
def _blocks(length: int, source: int, mask: Mask) -> tuple[tuple[slice, slice], ...]:
    """Returns blocks of queries, each with the keys between the first and the last that any of it sees."""
    size = max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS))
    low = np.arange(0, length, size)
    k_low = np.arange(0, source, _KEYS)
    query = Range(low[:, None], np.minimum(low + size, length)[:, None] - 1)
    key = Range(k_low, np.minimum(k_low + _KEYS, source) - 1)
    blocks = []
    for start, stop, row in zip(
        query.low[:, 0], query.high[:, 0] + 1, mask.classify(query, key), strict=True
    ):
        seen = np.flatnonzero(row != EMPTY)
        first, last = (seen[0], seen[-1]) if len(seen) else (0, 0)
        keys = slice(int(key.low[first]), int(key.high[last]) + 1)
        blocks.append((slice(int(start), int(stop)), keys))
    return tuple(blocks)


def _pairs(
    rows: slice, keys: slice, tokens: tuple, mask: Mask
) -> tuple[np.ndarray | jax.Array, np.ndarray]:
    """Returns bool `[t, s]` or `[B, t, s]`, which pairs are allowed; and int `[t, s]`, their distance."""
    q_segments, k_segments, in_prefix = tokens
    q, k = np.arange(rows.start, rows.stop)[:, None], np.arange(keys.start, keys.stop)[None]
    known = Known()
    if in_prefix is not None:
        known = known._replace(in_prefix=in_prefix[:, None, keys])
    if q_segments is None:
        return mask.allows(q, k, known), q - k
    known = known._replace(same_segment=q_segments[:, rows, None] == k_segments[:, None, keys])
    return mask.allows(q, k, known) & known.same_segment, q - k


def _rows(x: jax.Array, rows: slice) -> jax.Array:
    """Returns a block of `[B, G, R, T, K]` as `[B, G, Rt, K]`."""
    return block.rows_of(x[:, :, :, rows])


def _join(blocks: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_rows`: blocks to `[B, G, R, T, K]`."""
    batch, groups, repeats, _, width = shape
    return jnp.concatenate([x.reshape(batch, groups, repeats, -1, width) for x in blocks], axis=3)
