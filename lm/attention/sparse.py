"""Block-sparse attention from any mask: work and memory follow the blocks that are not empty.

For each block of queries the blocks of keys that the mask leaves are fetched and laid side by side; a mask
that is sparse between tokens is first put in another order (`lm/attention/table.py`). Parts of a mask in
different orders are merged by their log-sum-exp. Made of XLA's own operations, so it runs everywhere.

Related work: Child et al. 2019 (Sparse Transformers), Beltagy et al. 2020 (Longformer), Zaheer et al. 2020
(BigBird); Milakov and Gimelshein 2018 for merging softmaxes (https://arxiv.org/abs/1805.02867).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention import block, table
from lm.attention.block import FORBIDDEN, PLAIN, Extras
from lm.attention.masks import Known, Mask


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, tokens, mask, extras):
    return _forward(query, key, value, tokens, mask, extras)[0]


def _forward(query, key, value, tokens, mask, extras):
    outs, log_sums = [], []
    for part in table.plan(mask, query.shape[3], key.shape[2]):
        view = _View(part, tokens)
        q, k, v = part.query.take(query, 3), part.key.take(key, 2), part.key.take(value, 2)

        def step(carry, row, q=q, k=k, v=v, view=view):
            out, log_sum = carry
            allowed, distance = view.pairs(row)
            new, new_log_sum = block.forward(
                view.queries(q, row),
                view.keys(k, row),
                view.keys(v, row),
                allowed,
                distance,
                extras,
            )
            return (view.put(out, new, row), view.put(log_sum, new_log_sum, row)), None

        shape = q.shape[:-1]
        carry = (jnp.zeros(q.shape, jnp.float32), jnp.full((*shape, 1), FORBIDDEN / 2))
        for rows in part.rows:
            carry, _ = jax.lax.scan(step, carry, _steps(rows))
        outs.append(part.query.put(carry[0], 3))
        log_sums.append(part.query.put(carry[1], 3))
    out, log_sum = merge(outs, log_sums, query)
    out = out.astype(query.dtype)
    return out, (query, key, value, tokens, out, log_sum)


def merge(
    outs: list[jax.Array], log_sums: list[jax.Array], query: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the softmax over all parts, of the softmax over each; and its log-sum.

    Args:
        outs: float32 `[..., T, K]`, of each part.
        log_sums: float32 `[..., T, 1]`, of each part; `FORBIDDEN / 2` in rows that see nothing.
        query: `[..., T, K]`, for its shape.
    """
    if len(outs) == 1:
        return outs[0], log_sums[0]
    if not outs:
        return jnp.zeros(query.shape, jnp.float32), jnp.zeros((*query.shape[:-1], 1))
    log_sum = functools.reduce(jnp.logaddexp, log_sums)
    return sum(
        jnp.exp(part - log_sum) * out for out, part in zip(outs, log_sums, strict=True)
    ), log_sum


def _backward(mask, extras, residuals, gradient):
    query, key, value, tokens, out, log_sum = residuals
    along = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1, keepdims=True)
    d_query = jnp.zeros(query.shape, jnp.float32)
    d_key = d_value = jnp.zeros(key.shape, jnp.float32)
    for part in table.plan(mask, query.shape[3], key.shape[2]):
        view = _View(part, tokens)
        q, g, a, sums = (part.query.take(x, 3) for x in (query, gradient, along, log_sum))
        k, v = part.key.take(key, 2), part.key.take(value, 2)

        def step(carry, row, q=q, g=g, a=a, sums=sums, k=k, v=v, view=view):
            d_q, d_k, d_v = carry
            allowed, distance = view.pairs(row)
            new_q, new_k, new_v = block.backward(
                view.queries(q, row),
                view.keys(k, row),
                view.keys(v, row),
                *(view.queries(x, row) for x in (g, a, sums)),
                allowed,
                distance,
                extras,
            )
            return (
                view.put(d_q, new_q, row),
                view.add(d_k, new_k, row),
                view.add(d_v, new_v, row),
            ), None

        transposed = jnp.zeros(jnp.swapaxes(k, 2, 3).shape, jnp.float32)  # [B, G, K, S]
        carry = jnp.zeros(q.shape, jnp.float32), transposed, transposed
        for rows in part.rows:
            carry, _ = jax.lax.scan(step, carry, _steps(rows))
        d_query += part.query.put(carry[0], 3)
        d_key += part.key.put(jnp.swapaxes(carry[1], 2, 3), 2)
        d_value += part.key.put(jnp.swapaxes(carry[2], 2, 3), 2)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_attend.defvjp(_forward, _backward)


def _steps(rows: table.Rows) -> tuple[np.ndarray, ...]:
    """What a loop goes through. The number of consecutive blocks is static, and told by a shape."""
    return rows.queries, rows.starts, rows.others, np.zeros((len(rows.queries), rows.run), np.int8)


class _View:
    """Takes what a block of queries needs out of whole arrays, and puts what it yields into them."""

    def __init__(self, part: table.Part, tokens: tuple) -> None:
        self.mask = part.mask
        self.q_block, self.k_block = part.query.block, part.key.block
        self.q_places, self.k_places = table.places(part.query), table.places(part.key)
        self.filled_up = bool((self.q_places < 0).any() or (self.k_places < 0).any())
        q_segments, k_segments, in_prefix = tokens
        self.q_segments = None if q_segments is None else part.query.take(q_segments, 1)
        self.k_segments = None if k_segments is None else part.key.take(k_segments, 1)
        self.in_prefix = None if in_prefix is None else part.key.take(in_prefix, 1)

    def queries(self, x: jax.Array, row) -> jax.Array:
        """Returns `[B, G, Rt, K]` of `[B, G, R, T, K]`."""
        return block.rows_of(self._slice(x, row[0] * self.q_block, self.q_block, 3))

    def keys(self, x: jax.Array, row, axis: int = 2) -> jax.Array:
        """Returns the blocks of keys of a row, side by side along `axis`."""
        _, start, others, run = row
        parts = [self._slice(x, start * self.k_block, len(run) * self.k_block, axis)]
        parts += [
            self._slice(x, jnp.maximum(other, 0) * self.k_block, self.k_block, axis)
            for other in others
        ]
        return jnp.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]

    def put(self, x: jax.Array, new: jax.Array, row) -> jax.Array:
        """Returns `[B, G, R, T, K]` with the block of queries replaced by `[B, G, Rt, K]`."""
        new = new.reshape(*x.shape[:3], self.q_block, new.shape[-1])
        return jax.lax.dynamic_update_slice_in_dim(x, new, row[0] * self.q_block, axis=3)

    def add(self, x: jax.Array, new: jax.Array, row) -> jax.Array:
        """Returns `[B, G, K, S]` with `[B, G, K, s]` added at the blocks of keys of a row."""
        _, start, others, run = row
        at = 0
        sizes = [len(run)] + [1] * len(others)
        for first, size in zip([start, *(jnp.maximum(o, 0) for o in others)], sizes, strict=True):
            size *= self.k_block
            sums = self._slice(x, first * self.k_block, size, 3) + new[..., at : at + size]
            x = jax.lax.dynamic_update_slice_in_dim(x, sums, first * self.k_block, axis=3)
            at += size
        return x

    def pairs(self, row) -> tuple[jax.Array, jax.Array]:
        """Returns bool `[t, s]` or `[B, t, s]`, the allowed pairs; and int `[t, s]`, their distance."""
        _, _, others, run = row
        q = self._slice(jnp.asarray(self.q_places), row[0] * self.q_block, self.q_block, 0)[:, None]
        k = self.keys(jnp.asarray(self.k_places), row, 0)
        if len(others):
            none = jnp.repeat(others < 0, self.k_block)
            k = jnp.where(jnp.pad(none, (len(run) * self.k_block, 0)), -1, k)
        known = Known()
        if self.q_segments is not None:
            q_segments = self._slice(self.q_segments, row[0] * self.q_block, self.q_block, 1)
            k_segments = self.keys(self.k_segments, row, 1)
            known = known._replace(same_segment=q_segments[:, :, None] == k_segments[:, None])
        if self.in_prefix is not None:
            known = known._replace(in_prefix=self.keys(self.in_prefix, row, 1)[:, None])
        allowed = self.mask.allows(q, k, known)
        if self.filled_up or len(others):
            allowed &= (q >= 0) & (k >= 0)
        if known.same_segment is not None:
            allowed &= known.same_segment
        return allowed, q - k

    @staticmethod
    def _slice(x: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis)
