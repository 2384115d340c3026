"""Attention over all pairs (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

import jax
import jax.numpy as jnp

from lm.attention import blocked
from lm.attention.masks import Causal, Full, Mask
from lm.errors import InputError, lookup


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    segments: tuple[jax.Array, jax.Array] | None = None,
    positions: tuple[jax.Array, jax.Array] | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    implementation: str = 'auto',
) -> jax.Array:
    """Returns `softmax(query key^T / sqrt(K)) value`, the softmax in float32.

    Args:
        query: `[B, T, H, K]`.
        key: `[B, S, G, K]`. Each of the G heads serves H / G heads of the queries (Ainslie et al.
            2023, https://arxiv.org/abs/2305.13245); G = 1 is multi-query (Shazeer 2019).
        value: `[B, S, G, K]`.
        mask: who may attend to whom, by place in the row.
        segments: int32 `[B, T]` and `[B, S]`; tokens of different segments do not see each other.
        positions: int32 `[B or 1, T]` and `[B or 1, S]`, the places that the mask is asked about.
            None is 0, 1, 2, ... on both sides.
        bias: added to the scaled logits, broadcastable to `[B, H, T, S]`.
        softcap: c > 0 turns logits into `c tanh(logits / c)` before bias and mask (Gemma 2).
        implementation: auto | xla | blocked | cudnn.

    Returns:
        `[B, T, H, K]` in the dtype of the query; zeros where a query may see nothing.

    Raises:
        InputError: the implementation is not known, or cannot do this.
    """
    softcap = softcap or None
    choose = lookup(IMPLEMENTATIONS, implementation, 'config.model.attention_implementation')
    whole = positions is None and bias is None and query.shape[1] > 1
    chosen = choose(query, key, whole, softcap)
    if chosen == 'blocked':
        return blocked.attend(query, key, value, mask, segments, softcap)
    aligned = positions is None and segments is None and query.shape[1] == key.shape[1]
    causal = aligned and mask == Causal() and softcap is None
    everything = segments is None and mask == Full()
    allowed = None if causal or everything else allowed_pairs(query, key, mask, segments, positions)
    if softcap is None:
        out = jax.nn.dot_product_attention(
            query, key, value, bias, allowed, is_causal=causal, implementation=chosen
        )
    else:
        out = _softcapped(query, key, value, bias, allowed, softcap)
    if allowed is None:
        return out
    sees = jnp.any(allowed, axis=-1)[:, 0, :, None, None]  # [B or 1, T, 1, 1]
    return jnp.where(sees, out, jnp.zeros((), out.dtype))


def allowed_pairs(
    query: jax.Array,
    key: jax.Array,
    mask: Mask,
    segments: tuple[jax.Array, jax.Array] | None,
    positions: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Returns bool `[B or 1, 1, T, S]`: the pairs that the mask and the segments both allow."""
    q_positions, k_positions = positions or (
        jnp.arange(query.shape[1])[None],
        jnp.arange(key.shape[1])[None],
    )
    allowed = mask.allows(q_positions[:, :, None], k_positions[:, None, :])  # [B or 1, T, S]
    if segments is not None:
        q_segments, k_segments = segments
        allowed &= q_segments[:, :, None] == k_segments[:, None, :]
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


def _auto(query: jax.Array, key: jax.Array, whole: bool, softcap: float | None) -> str:
    """What pays: cuDNN where it is known to work, blocks elsewhere, XLA for what has no use for either.

    On CPU blocks are two to three times faster; compiled for a TPU they need less than half the memory of
    XLA's plain form, and no more operations or traffic (`experiments/speed/README.md`).

    Args:
        query: `[B, T, H, K]`.
        key: `[B, S, G, K]`.
        whole: a sequence of more than one token, at places 0, 1, 2, ... and without a bias.
        softcap: None without one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not whole or (not mesh.empty and mesh.shape.get('sequence', 1) > 1):
        return 'xla'  # The others want whole rows.
    width = query.shape[-1]
    fits = width <= 128 and width % 8 == 0 and query.shape[1] % 2 == key.shape[1] % 2 == 0
    half = query.dtype in (jnp.float16, jnp.bfloat16)
    return 'cudnn' if half and fits and softcap is None and _has_cudnn() else 'blocked'


def _blocked(query: jax.Array, key: jax.Array, whole: bool, softcap: float | None) -> str:
    """Blocks, but for the steps of decoding and for a bias, which have no use for them."""
    return 'blocked' if whole else 'xla'


def _cudnn(query: jax.Array, key: jax.Array, whole: bool, softcap: float | None) -> str:
    place = "config.model.attention_implementation = 'cudnn'"
    if softcap is not None:
        raise InputError(f"{place} cannot cap logits: use 'auto', or attention_softcap = 0.")
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        raise InputError(f"{place} needs config.model.dtype = 'bfloat16', not {query.dtype}.")
    if not _has_cudnn():
        raise InputError(f"{place} needs an NVIDIA GPU of Ampere or later: use 'auto'.")
    return 'cudnn'


def _has_cudnn() -> bool:
    if jax.default_backend() != 'gpu':
        return False
    device = jax.devices()[0]
    # AMD's GPUs are of platform 'gpu' too; cuDNN's flash attention begins with Ampere (8.0).
    return 'cuda' in device.client.platform_version.lower() and (
        float(device.compute_capability) >= 8.0
    )


# Name -> function(query, key, whole, softcap) that chooses what runs, or says why that cannot.
IMPLEMENTATIONS = {'auto': _auto, 'xla': lambda *_: 'xla', 'blocked': _blocked, 'cudnn': _cudnn}
