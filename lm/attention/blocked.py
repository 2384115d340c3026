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
from lm.attention.block import Form, Tokens
from lm.attention.masks import EMPTY, Known, Mask, Range

_LEAST_BLOCK = 128  # Queries: less is too little for a matrix product.
_MOST_BLOCKS = 16  # Each is compiled by itself.
_KEYS = 64  # What a block sees is rounded up to so many keys.


def pairs(mask: Mask, length: int, source: int) -> int:
    """Returns how many pairs are computed for T = `length` queries and S = `source` keys."""
    return sum(
        (rows.stop - rows.start) * (keys.stop - keys.start)
        for rows, keys in _blocks(length, source, mask)
    )


def _forward(query, key, value, tokens, mask, extras, start=0):
    outs, log_sums = [], []
    for rows, keys in _blocks(query.shape[3], key.shape[2], mask, start):
        pairs = _pairs(rows, keys, tokens, mask, start)
        out, log_sum = block.one_forward(
            _rows(query, rows), key[:, :, keys], value[:, :, keys], *pairs, extras
        )
        outs.append(out)
        log_sums.append(log_sum)
    return _join(outs, query.shape), _join(log_sums, query.shape)


def _backward(query, key, value, tokens, gradient, along, log_sum, mask, extras, start=0):
    d_query = []
    d_key = d_value = jnp.zeros(jnp.swapaxes(key, 2, 3).shape, jnp.float32)  # [B, G, K, S]
    for rows, keys in _blocks(query.shape[3], key.shape[2], mask, start):
        d_q, d_k, d_v = block.one_backward(
            _rows(query, rows),
            key[:, :, keys],
            value[:, :, keys],
            *(_rows(x, rows) for x in (gradient, along, log_sum)),
            *_pairs(rows, keys, tokens, mask, start),
            extras,
        )
        d_query.append(d_q)
        d_key = d_key.at[..., keys].add(d_k)
        d_value = d_value.at[..., keys].add(d_v)
    return _join(d_query, query.shape), jnp.swapaxes(d_key, 2, 3), jnp.swapaxes(d_value, 2, 3)


FORM = Form(_forward, _backward)
attend = functools.partial(block.attend, FORM)


@functools.lru_cache(maxsize=256)
def _blocks(
    length: int, source: int, mask: Mask, start: int = 0
) -> tuple[tuple[slice, slice], ...]:
    """Returns blocks of queries, each with the keys between the first and the last that any of it sees."""
    size = max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS))
    low = np.arange(0, length, size)
    k_low = np.arange(0, source, _KEYS)
    high = np.minimum(low + size, length) - 1
    query = Range(start + low[:, None], start + high[:, None])
    key = Range(k_low, np.minimum(k_low + _KEYS, source) - 1)
    blocks = []
    for first_row, last_row, row in zip(low, high, mask.classify(query, key), strict=True):
        seen = np.flatnonzero(row != EMPTY)
        first, last = (seen[0], seen[-1]) if len(seen) else (0, 0)
        keys = slice(int(key.low[first]), int(key.high[last]) + 1)
        blocks.append((slice(int(first_row), int(last_row) + 1), keys))
    return tuple(blocks)


def _pairs(
    rows: slice, keys: slice, tokens: Tokens, mask: Mask, start: int
) -> tuple[np.ndarray | jax.Array, np.ndarray]:
    """Returns bool `[t, s]` or `[B, t, s]`, which pairs are allowed; and int `[t, s]`, their distance."""
    q_segments, k_segments, in_prefix = tokens
    q = np.arange(start + rows.start, start + rows.stop)[:, None]
    k = np.arange(keys.start, keys.stop)[None]
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
    parts = [x.reshape(*shape[:3], -1, x.shape[-1]) for x in blocks]
    return jnp.concatenate(parts, axis=3)
