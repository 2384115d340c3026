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
from lm.attention.block import FORBIDDEN, Form, Tokens
from lm.attention.masks import Known


def _forward(query, key, value, tokens, mask, extras, start=0):
    outs, log_sums = [], []
    for part in table.plan(mask, query.shape[3], key.shape[2], start):
        view = _View(part, tokens)
        q, k, v = part.query.take(query, 3), part.key.take(key, 2), part.key.take(value, 2)

        def step(carry, row, q=q, k=k, v=v, view=view):
            out, log_sum = carry
            new, new_log_sum = block.one_forward(
                view.queries(q, row), view.keys(k, row), view.keys(v, row), *view.pairs(row), extras
            )
            return (view.put(out, new, row), view.put(log_sum, new_log_sum, row)), None

        carry = (
            jnp.zeros(q.shape, jnp.float32),
            jnp.full((*q.shape[:-1], 1), FORBIDDEN / 2, jnp.float32),
        )
        for rows in part.rows:
            carry, _ = jax.lax.scan(step, carry, _steps(rows))
        outs.append(part.query.put(carry[0], 3))
        log_sums.append(part.query.put(carry[1], 3))
    return block.merge(outs, log_sums, query.shape)


def _backward(query, key, value, tokens, gradient, along, log_sum, mask, extras, start=0):
    d_query = jnp.zeros(query.shape, jnp.float32)
    d_key = d_value = jnp.zeros(key.shape, jnp.float32)
    for part in table.plan(mask, query.shape[3], key.shape[2], start):
        view = _View(part, tokens)
        q, *others = (part.query.take(x, 3) for x in (query, gradient, along, log_sum))
        k, v = part.key.take(key, 2), part.key.take(value, 2)

        def step(carry, row, q=q, k=k, v=v, others=others, view=view):
            d_q, d_k, d_v = carry
            new_q, new_k, new_v = block.one_backward(
                view.queries(q, row),
                view.keys(k, row),
                view.keys(v, row),
                *(view.queries(x, row) for x in others),
                *view.pairs(row),
                extras,
            )
            carry = view.put(d_q, new_q, row), view.add(d_k, new_k, row), view.add(d_v, new_v, row)
            return carry, None

        transposed = jnp.zeros(jnp.swapaxes(k, 2, 3).shape, jnp.float32)  # [B, G, K, S]
        carry = jnp.zeros(q.shape, jnp.float32), transposed, transposed
        for rows in part.rows:
            carry, _ = jax.lax.scan(step, carry, _steps(rows))
        d_query += part.query.put(carry[0], 3)
        d_key += part.key.put(jnp.swapaxes(carry[1], 2, 3), 2)
        d_value += part.key.put(jnp.swapaxes(carry[2], 2, 3), 2)
    return d_query, d_key, d_value


FORM = Form(_forward, _backward)
attend = functools.partial(block.attend, FORM)


def _steps(rows: table.Rows) -> tuple[np.ndarray, ...]:
    """What a loop goes through. The number of consecutive blocks is static, and told by a shape."""
    return rows.queries, rows.starts, rows.others, np.zeros((len(rows.queries), rows.run), np.int8)


class _View:
    """Takes what a block of queries needs out of whole arrays, and puts what it yields into them."""

    def __init__(self, part: table.Part, tokens: Tokens) -> None:
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
