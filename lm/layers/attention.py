"""The attention part of a layer: projections, rotary positions, the cache, and `lm.attention`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import ATTENTIONS
from lm.attention.masks import Mask
from lm.config import ModelConfig
from lm.errors import InputError
from lm.layers.dense import Dense
from lm.layers.norm import RMSNorm
from lm.layers.position import alibi_bias, rotate

# Keys and values of one layer, `{'key': [B, G, S, K], 'value': [B, G, S, K]}`: what a head multiplies lies
# together, and need not be moved for it. 16 bits are kept as integers.
Cache = dict[str, jax.Array]


def head_sizes(config: ModelConfig) -> tuple[int, int, int]:
    """Returns H, G and K.

    Raises:
        InputError: H does not divide D (where K is not given), or G does not divide H.
    """
    heads, groups = config.num_heads, config.num_kv_heads or config.num_heads
    if not config.head_dim and config.embed_dim % heads:
        nearest = max(heads, round(config.embed_dim / heads) * heads)
        raise InputError(
            f'config.model.embed_dim = {config.embed_dim} cannot be divided by num_heads = {heads}. '
            f'Did you mean {nearest}?'
        )
    if heads % groups:
        nearest = min(
            (g for g in range(1, heads + 1) if heads % g == 0), key=lambda g: abs(g - groups)
        )
        raise InputError(
            f'config.model.num_heads = {heads} cannot be divided by num_kv_heads = {groups}. '
            f'Did you mean {nearest}?'
        )
    return heads, groups, config.head_dim or config.embed_dim // heads


class Attention(nn.Module):
    """Multi-head self-attention over `[B, T, D]`.

    Attributes:
        config: the model.
        mask: who may attend to whom.
    """

    config: ModelConfig
    mask: Mask

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None = None,
        segments: jax.Array | None = None,
        places: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]`, and the cache with these tokens in it.

        Args:
            x: `[B, T, D]`.
            angles: of rotary positions.
            segments: int32 `[B, T]`; None is one segment a row.
            places: int32 `[B, T]`, only with a cache: where in it each token goes. A token sees the
                places up to its own, so that what lies after them does no harm.
            cache: keys and values of earlier tokens.
        """
        c = self.config
        heads, groups, width = head_sizes(c)
        dense = functools.partial(Dense, bias=c.bias, dtype=jnp.dtype(c.dtype))
        query = dense((heads, width), name='query')(x)  # [B, T, H, K]
        key = dense((groups, width), name='key')(x)  # [B, T, G, K]
        value = dense((groups, width), name='value')(x)
        if c.qk_norm:  # Dehghani et al. 2023, https://arxiv.org/abs/2302.05442
            query = RMSNorm(dtype=query.dtype, name='query_norm')(query)
            key = RMSNorm(dtype=key.dtype, name='key_norm')(key)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None:
            cache = write(cache, key, value, places)
            key, value = (read(cache[name], key.dtype) for name in ('key', 'value'))  # [B, S, G, K]
        slots = jnp.arange(key.shape[1])[None]  # [1, S]
        bias = None
        if c.position == 'alibi':
            bias = alibi_bias(heads, slots if places is None else places, slots)
        out = ATTENTIONS['dense'](
            query,
            key,
            value,
            self.mask,
            segments=None if segments is None else (segments, segments),
            positions=None if places is None else (places, slots),
            bias=bias,
            softcap=c.attention_softcap or None,
            implementation=c.attention_implementation,
        )
        scale = (2 * c.num_layers) ** -0.5  # as in MLP
        return dense((c.embed_dim,), inputs=2, scale=scale, name='out')(out), cache


def make_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """Returns an empty cache for `batch` rows of at most `length` tokens."""
    _, groups, width = head_sizes(config)
    empty = _bits(jnp.zeros((batch, groups, length, width), jnp.dtype(config.dtype)))
    return {'key': empty, 'value': empty}


def grow(cache: Cache, length: int) -> Cache:
    """Returns a cache, or a tree of them, with room for `length` tokens a row."""

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    return jax.tree.map(pad, cache)


def write(cache: Cache, key: jax.Array, value: jax.Array, places: jax.Array) -> Cache:
    """Returns the cache with keys and values `[B, T, G, K]` at places `[B, T]` of each row."""
    rows = jnp.arange(places.shape[0])[:, None]
    return {
        name: cache[name].at[rows, :, places].set(_bits(new), mode='drop')
        for name, new in (('key', key), ('value', value))
    }


def read(kept: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `[B, S, G, K]`, keys or values of a cache."""
    return jnp.swapaxes(jax.lax.bitcast_convert_type(kept, dtype), 1, 2)


def _bits(x: jax.Array) -> jax.Array:
    """Returns 16-bit floats as integers: to write one, XLA's CPU backend would convert the whole array."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x
