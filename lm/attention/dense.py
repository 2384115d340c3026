"""Attention over all pairs (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), in the plain form.

It holds an array of all pairs, does anything, and is what the other forms are held to.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm import backend
from lm.attention.block import PLAIN, Extras
from lm.attention.masks import Causal, Full, Known, Mask


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    segments: tuple[jax.Array, jax.Array] | None = None,
    in_prefix: jax.Array | None = None,
    positions: tuple[jax.Array, jax.Array] | None = None,
    bias: jax.Array | None = None,
    extras: Extras = PLAIN,
    implementation: str = 'xla',
) -> jax.Array:
    """Returns `[B, T, H, K]`; the arguments are those of `lm.attention.attend`.

    Args:
        implementation: of `jax.nn.dot_product_attention`: xla | cudnn.
    """
    q_positions, k_positions = positions or (
        jnp.arange(query.shape[1])[None],
        jnp.arange(key.shape[1])[None],
    )
    if extras.slopes is not None:
        distance = jnp.abs(q_positions[:, :, None] - k_positions[:, None, :]).astype(jnp.float32)
        alibi = -np.asarray(extras.slopes, np.float32)[:, None, None] * distance[:, None]
        bias = alibi if bias is None else bias + alibi  # [B or 1, H, T, S]
    aligned = positions is None and segments is None and query.shape[1] == key.shape[1]
    causal = aligned and mask == Causal() and extras.softcap is None
    everything = segments is None and positions is None and mask == Full()
    allowed = None
    if not (causal or everything):
        allowed = _allowed_pairs(q_positions, k_positions, mask, segments, in_prefix)
        if positions is not None:
            allowed &= (k_positions >= 0)[:, None, None]
    dtype = query.dtype
    if dtype == jnp.float16 and backend.platform() != 'gpu':
        # JAX asks for a product of float16 by name here, which only GPUs have.
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    if extras.softcap is None:
        out = jax.nn.dot_product_attention(
            query, key, value, bias, allowed, is_causal=causal, implementation=implementation
        )
    else:
        out = _softcapped(query, key, value, bias, allowed, extras.softcap)
    out = out.astype(dtype)
    if allowed is None:
        return out
    sees = jnp.any(allowed, axis=-1)[:, 0, :, None, None]  # [B or 1, T, 1, 1]
    return jnp.where(sees, out, jnp.zeros((), out.dtype))


def _allowed_pairs(
    q_positions: jax.Array,
    k_positions: jax.Array,
    mask: Mask,
    segments: tuple[jax.Array, jax.Array] | None,
    in_prefix: jax.Array | None,
) -> jax.Array:
    """Returns bool `[B or 1, 1, T, S]`: the pairs that the mask and the segments both allow."""
    known = Known()
    if segments is not None:
        known = known._replace(same_segment=segments[0][:, :, None] == segments[1][:, None, :])
    if in_prefix is not None:
        known = known._replace(in_prefix=in_prefix[:, None, :])
    allowed = mask.allows(q_positions[:, :, None], k_positions[:, None, :], known)
    if known.same_segment is not None:
        allowed &= known.same_segment
    return allowed[:, None]


def _softcapped(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    allowed: jax.Array | None,
    softcap: float,
) -> jax.Array:
    """As `jax.nn.dot_product_attention`, with capped logits."""
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum('btgik,bsgk->bgits', grouped, key, preferred_element_type=jnp.float32)
    logits = softcap * jnp.tanh(logits * width**-0.5 / softcap)
    logits = logits.reshape(batch, heads, length, key.shape[1])  # [B, H, T, S]
    if bias is not None:
        logits += bias
    if allowed is not None:
        # The least finite number, not -inf: a row that sees nothing must not become NaN.
        logits = jnp.where(allowed, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    weights = weights.reshape(batch, groups, heads // groups, length, key.shape[1])
    return jnp.einsum('bgits,bsgk->btgik', weights, value).reshape(query.shape)
