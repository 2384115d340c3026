"""Dense attention, a block of queries at a time: no `[T, S]` array, no work on keys that a mask forbids.

Values and gradients are those of the plain form. The softmax of a block is kept as one number a row, and
made again in the backward pass (Rabe and Staats 2021, https://arxiv.org/abs/2112.05682; Dao et al. 2022,
https://arxiv.org/abs/2205.14135). Made of XLA's own operations, so it runs everywhere; on CPU, where a
block stays in cache, it is two to three times faster than the plain form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm import matmul
from lm.attention.masks import Mask

_LEAST_BLOCK = 128  # Queries: less is too little for a matrix product.
_MOST_BLOCKS = 16  # Each is compiled by itself.
_FORBIDDEN = float(np.finfo(np.float32).min)

Segments = tuple[jax.Array, jax.Array]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    segments: Segments | None,
    softcap: float | None,
) -> jax.Array:
    """Returns `[B, T, H, K]`; the arguments are those of `lm.attention.dense.attend`.

    Queries and keys are at places 0, 1, 2, ...
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    # Heads that share keys are further queries of the same keys.
    query = query.reshape(batch, length, groups, heads // groups, width)
    query = jnp.transpose(query, (0, 2, 3, 1, 4))  # [B, G, R, T, K]
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, G, S, K]
    out = _attend(query, key, value, segments, mask, softcap)
    return jnp.transpose(out, (0, 3, 1, 2, 4)).reshape(batch, length, heads, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, segments, mask, softcap):
    return _forward(query, key, value, segments, mask, softcap)[0]


def _forward(query, key, value, segments, mask, softcap):
    outs, log_sums = [], []
    for rows, keys in _blocks(query.shape[3], key.shape[2], mask):
        q, k, v = _rows(query, rows), key[:, :, keys], value[:, :, keys]
        logits, _ = _logits(q, k, _allowed(rows, keys, segments, mask), softcap)
        # A row that sees nothing gets exponentials of 0, not of the difference of two least numbers.
        top = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), _FORBIDDEN / 2)
        weights = jnp.exp(logits - top)  # [B, G, Rt, s]
        total = jnp.sum(weights, axis=-1, keepdims=True)  # [B, G, Rt, 1]
        total = jnp.where(total == 0, 1.0, total)
        out = _product(weights.astype(v.dtype), v, (3, 2)) / total
        outs.append(out.astype(query.dtype))
        log_sums.append(top + jnp.log(total))
    return _join(outs, query.shape), (query, key, value, segments, tuple(outs), tuple(log_sums))


def _backward(mask, softcap, residuals, gradient):
    query, key, value, segments, outs, log_sums = residuals
    dtype, scale = query.dtype, query.shape[-1] ** -0.5
    d_query = []
    # [B, G, K, S]: the product with the small operand on the left is the fast one, above all in 16 bits.
    d_key = d_value = jnp.zeros(jnp.swapaxes(key, 2, 3).shape, jnp.float32)
    blocks = _blocks(query.shape[3], key.shape[2], mask)
    for (rows, keys), out, log_sum in zip(blocks, outs, log_sums, strict=True):
        q, g, k, v = _rows(query, rows), _rows(gradient, rows), key[:, :, keys], value[:, :, keys]
        logits, slope = _logits(q, k, _allowed(rows, keys, segments, mask), softcap)
        weights = jnp.exp(logits - log_sum)  # [B, G, Rt, s]
        # The gradient of a softmax subtracts, in each row, the sum of weights times their gradients.
        along = jnp.sum(g.astype(jnp.float32) * out, axis=-1, keepdims=True)
        d_logits = weights * (_product(g, v, (3, 3)) - along)
        if slope is not None:
            d_logits *= slope
        d_logits, weights = d_logits.astype(dtype), weights.astype(dtype)
        d_query.append(scale * _product(d_logits, k, (3, 2)))
        d_key = d_key.at[..., keys].add(scale * _product(q, d_logits, (2, 2)))
        d_value = d_value.at[..., keys].add(_product(g, weights, (2, 2)))
    d_key, d_value = jnp.swapaxes(d_key, 2, 3), jnp.swapaxes(d_value, 2, 3)
    return (
        _join(d_query, query.shape).astype(dtype),
        d_key.astype(dtype),
        d_value.astype(dtype),
        None,
    )


_attend.defvjp(_forward, _backward)


def _blocks(length: int, source: int, mask: Mask) -> list[tuple[slice, slice]]:
    """Returns blocks of queries, each with the keys between the first and the last that any of it sees."""
    size = max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        rows = slice(start, min(start + size, length))
        seen = np.flatnonzero(_allowed(rows, slice(0, source), None, mask).any(axis=0))
        first, last = (seen[0], seen[-1]) if len(seen) else (0, 0)
        blocks.append((rows, slice(int(first), int(last) + 1)))
    return blocks


def _allowed(
    rows: slice, keys: slice, segments: Segments | None, mask: Mask
) -> np.ndarray | jax.Array:
    """Returns bool `[t, s]`, or `[B, t, s]` with segments: the pairs of a block that may see each other."""
    allowed = mask.allows(
        np.arange(rows.start, rows.stop)[:, None], np.arange(keys.start, keys.stop)
    )
    if segments is None:
        return allowed
    return allowed & (segments[0][:, rows, None] == segments[1][:, None, keys])


def _logits(
    query: jax.Array, key: jax.Array, allowed: np.ndarray | jax.Array, softcap: float | None
) -> tuple[jax.Array, jax.Array | None]:
    """Returns masked float32 logits `[B, G, Rt, s]`, and the slope of the cap, None without one."""
    logits = query.shape[-1] ** -0.5 * _product(query, key, (3, 3))
    slope = None
    if softcap is not None:
        capped = jnp.tanh(logits / softcap)
        logits, slope = softcap * capped, 1 - capped**2
    if isinstance(allowed, np.ndarray) and allowed.all():
        return logits, slope
    repeats = query.shape[2] // allowed.shape[-2]
    allowed = jnp.tile(allowed, (repeats, 1))  # [Rt, s] or [B, Rt, s]
    return jnp.where(allowed if allowed.ndim == 2 else allowed[:, None], logits, _FORBIDDEN), slope


def _rows(x: jax.Array, rows: slice) -> jax.Array:
    """Returns a block of `[B, G, R, T, K]` as `[B, G, Rt, K]`: one matrix product a group of heads."""
    x = x[:, :, :, rows]
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _join(blocks: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_rows`: blocks to `[B, G, R, T, K]`."""
    batch, groups, repeats, _, width = shape
    return jnp.concatenate([x.reshape(batch, groups, repeats, -1, width) for x in blocks], axis=3)


def _product(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """Returns float32 products of matrices, for each B and G, over an axis of each."""
    return matmul.dot(a, b, ((contracted[0],), (contracted[1],)), batch=2)
