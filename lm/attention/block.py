"""Attention of one block of queries over some keys, and its gradient: what all forms in blocks are made of.

The softmax is kept as one number a row, and made again in the backward pass (Rabe and Staats 2021,
https://arxiv.org/abs/2112.05682; Dao et al. 2022, https://arxiv.org/abs/2205.14135).

Letters: R queries' heads for each of the G heads of keys, t queries and s keys of a block; `Rt` is both
in one axis, since heads that share keys are further queries of the same keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import matmul

FORBIDDEN = float(np.finfo(np.float32).min)

Segments = tuple[jax.Array, jax.Array]


class Extras(NamedTuple):
    """What else bears on the logits.

    Attributes:
        softcap: logits become `c tanh(logits / c)`.
        slopes: float32 `[H]`, of ALiBi: times the distance, taken from the logits after capping.
    """

    softcap: float | None = None
    slopes: tuple[float, ...] | None = None


PLAIN = Extras()


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    allowed: np.ndarray | jax.Array,
    distance: np.ndarray | jax.Array | None,
    extras: Extras,
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 `[B, G, Rt, K]`, and the log of the sum of exponentials, `[B, G, Rt, 1]`.

    A row that sees nothing is 0, and its log is that of the least number.

    Args:
        query: `[B, G, Rt, K]`.
        key: `[B, G, s, K]`.
        value: `[B, G, s, K]`.
        allowed: bool `[t, s]`, `[B, t, s]` or `[B, G, t, s]`.
        distance: int `[t, s]` or `[B, G, t, s]`, only with slopes.
        extras: of the logits.
    """
    scores, _ = logits(query, key, allowed, distance, extras)
    # A row that sees nothing gets exponentials of 0, not of the difference of two least numbers.
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), FORBIDDEN / 2)
    weights = jnp.exp(scores - top)  # [B, G, Rt, s]
    total = jnp.sum(weights, axis=-1, keepdims=True)  # [B, G, Rt, 1]
    total = jnp.where(total == 0, 1.0, total)
    out = product(weights.astype(value.dtype), value, (3, 2)) / total
    return out, top + jnp.log(total)


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    gradient: jax.Array,
    along: jax.Array,
    log_sum: jax.Array,
    allowed: np.ndarray | jax.Array,
    distance: np.ndarray | jax.Array | None,
    extras: Extras,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns float32 gradients: of the query `[B, G, Rt, K]`, of key and value `[B, G, K, s]`.

    The last two are transposed: the product with the small operand on the left is the fast one, above
    all in 16 bits.

    Args:
        query, key, value, allowed, distance, extras: as in `forward`.
        gradient: of the result, `[B, G, Rt, K]`.
        along: float32 `[B, G, Rt, 1]`, the sum of gradient times result over K.
        log_sum: of all that the queries see, in this block of keys and elsewhere.
    """
    dtype, scale = query.dtype, query.shape[-1] ** -0.5
    scores, slope = logits(query, key, allowed, distance, extras)
    weights = jnp.exp(scores - log_sum)  # [B, G, Rt, s]
    # The gradient of a softmax subtracts, in each row, the sum of weights times their gradients.
    d_scores = weights * (product(gradient, value, (3, 3)) - along)
    if slope is not None:
        d_scores *= slope
    d_scores, weights = d_scores.astype(dtype), weights.astype(dtype)
    d_query = scale * product(d_scores, key, (3, 2))
    d_key = scale * product(query, d_scores, (2, 2))
    return d_query, d_key, product(gradient, weights, (2, 2))


def logits(
    query: jax.Array,
    key: jax.Array,
    allowed: np.ndarray | jax.Array,
    distance: np.ndarray | jax.Array | None,
    extras: Extras,
) -> tuple[jax.Array, jax.Array | None]:
    """Returns masked float32 logits `[B, G, Rt, s]`, and the slope of the cap, None without one."""
    scores = query.shape[-1] ** -0.5 * product(query, key, (3, 3))
    slope = None
    if extras.softcap is not None:
        capped = jnp.tanh(scores / extras.softcap)
        scores, slope = extras.softcap * capped, 1 - capped**2
    repeats = query.shape[2] // allowed.shape[-2]
    if extras.slopes is not None:
        slopes = np.asarray(extras.slopes, np.float32).reshape(query.shape[1], repeats, 1, 1)
        distance = distance if distance.ndim == 2 else distance[:, :, None]
        bias = -slopes * jnp.abs(distance).astype(jnp.float32)  # [G, R, t, s] or [B, G, R, t, s]
        scores += bias.reshape(*bias.shape[:-3], -1, bias.shape[-1])
    if isinstance(allowed, np.ndarray) and allowed.all():
        return scores, slope
    allowed = jnp.tile(allowed, (repeats, 1))  # [Rt, s], [B, Rt, s] or [B, G, Rt, s]
    allowed = allowed[:, None] if allowed.ndim == 3 else allowed
    return jnp.where(allowed, scores, FORBIDDEN), slope


def product(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """Returns float32 products of matrices, for each B and G, over an axis of each."""
    return matmul.dot(a, b, ((contracted[0],), (contracted[1],)), batch=2)


def split_heads(query: jax.Array, groups: int) -> jax.Array:
    """Returns `[B, G, R, T, K]` of `[B, T, H, K]`."""
    batch, length, heads, width = query.shape
    query = query.reshape(batch, length, groups, heads // groups, width)
    return jnp.transpose(query, (0, 2, 3, 1, 4))


def join_heads(x: jax.Array) -> jax.Array:
    """The inverse of `split_heads`."""
    batch, groups, repeats, length, width = x.shape
    return jnp.transpose(x, (0, 3, 1, 2, 4)).reshape(batch, length, groups * repeats, width)


def rows_of(x: jax.Array) -> jax.Array:
    """Returns `[B, G, Rt, K]` of `[B, G, R, t, K]`: one matrix product a group of heads."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])
