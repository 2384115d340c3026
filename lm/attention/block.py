"""What all forms of attention in blocks are made of: one block of queries over some keys, and its gradient.

The softmax is kept as one number a row, and made again in the backward pass (Rabe and Staats 2021,
https://arxiv.org/abs/2112.05682; Dao et al. 2022, https://arxiv.org/abs/2205.14135).

Letters: R queries' heads for each of the G heads of keys, t queries and s keys of a block; `Rt` is both
in one axis, since heads that share keys are further queries of the same keys.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import matmul
from lm.attention.masks import Mask

FORBIDDEN = float(np.finfo(np.float32).min)

Segments = tuple[jax.Array, jax.Array]  # int32 [B, T] and [B, S]


class Tokens(NamedTuple):
    """What is known of queries and keys besides their places; None where it is not.

    Attributes:
        q_segments: int32 `[B, T]`.
        k_segments: int32 `[B, S]`.
        in_prefix: bool `[B, S]`.
    """

    q_segments: jax.Array | None = None
    k_segments: jax.Array | None = None
    in_prefix: jax.Array | None = None


class Extras(NamedTuple):
    """What else bears on the logits.

    Attributes:
        softcap: logits become `c tanh(logits / c)`.
        slopes: float32 `[H]`, of ALiBi: times the distance, taken from the logits after capping.
    """

    softcap: float | None = None
    slopes: tuple[float, ...] | None = None


PLAIN = Extras()


class Form(NamedTuple):
    """A way to go through the blocks of a mask.

    Attributes:
        forward: `(query [B, G, R, T, K], key [B, G, S, K], value, tokens, mask, extras, start)` to the
            float32 result, and the log of the sum of exponentials, `[B, G, R, T, 1]`. Queries are at
            places `start`, `start + 1`, ..., keys at 0, 1, ...
        backward: `(query, key, value, tokens, gradient, along, log_sum, mask, extras, start)` to the
            float32 gradients of query, key and value. `along` is the sum of gradient times result over
            K, `[B, G, R, T, 1]`, and `log_sum` is of all keys, those elsewhere too.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def attend(
    form: Form,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    segments: tuple[jax.Array, jax.Array] | None = None,
    in_prefix: jax.Array | None = None,
    extras: Extras = PLAIN,
    start: int = 0,
) -> jax.Array:
    """Returns `[B, T, H, K]`; the arguments are those of `lm.attention.attend`.

    Queries are at places `start`, `start + 1`, ..., keys at 0, 1, ...
    """
    groups = key.shape[2]
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, G, S, K]
    tokens = Tokens(*(segments or (None, None)), in_prefix)
    out = _attend(split_heads(query, groups), key, value, tokens, form, mask, extras, start)
    return join_heads(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _attend(query, key, value, tokens, form, mask, extras, start):
    return _attend_forward(query, key, value, tokens, form, mask, extras, start)[0]


def _attend_forward(query, key, value, tokens, form, mask, extras, start):
    out, log_sum = form.forward(query, key, value, tokens, mask, extras, start)
    out = out.astype(query.dtype)
    return out, (query, key, value, tokens, out, log_sum)


def _attend_backward(form, mask, extras, start, residuals, gradient):
    query, key, value, tokens, out, log_sum = residuals
    along = along_rows(gradient, out)
    grads = form.backward(query, key, value, tokens, gradient, along, log_sum, mask, extras, start)
    return (*(g.astype(x.dtype) for g, x in zip(grads, (query, key, value), strict=True)), None)


_attend.defvjp(_attend_forward, _attend_backward)


def along_rows(gradient: jax.Array, out: jax.Array) -> jax.Array:
    """Returns float32 `[..., 1]`: how a result changes along itself, which a softmax cannot."""
    return jnp.sum(gradient.astype(jnp.float32) * out, axis=-1, keepdims=True)


def merge(
    outs: list[jax.Array], log_sums: list[jax.Array], shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns the softmax over all of several sets of keys, of the softmax over each; and its log-sum.

    Args:
        outs: float32 `[..., T, K]`, of each set; there may be none.
        log_sums: float32 `[..., T, 1]`, of each set; `FORBIDDEN / 2` in rows that see nothing.
        shape: `[..., T, K]`.
    """
    if not outs:
        return jnp.zeros(shape, jnp.float32), jnp.full((*shape[:-1], 1), FORBIDDEN / 2, jnp.float32)
    if len(outs) == 1:
        return outs[0], log_sums[0]
    log_sum = functools.reduce(jnp.logaddexp, log_sums)
    parts = zip(outs, log_sums, strict=True)
    return sum(jnp.exp(part - log_sum) * out for out, part in parts), log_sum


def one_forward(
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


def one_backward(
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
        query, key, value, allowed, distance, extras: as in `one_forward`.
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
