"""The attention part of a layer: projections, rotary positions, the cache, and `lm.attention`."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import attend, causal_form, parse
from lm.attention.block import Extras
from lm.attention.masks import Mask, Reach
from lm.config import ModelConfig
from lm.errors import InputError
from lm.layers.dense import Dense
from lm.layers.norm import RMSNorm
from lm.layers.position import alibi_slopes, relative_bias, rotate
from lm.layers.tokens import UNKNOWN, Tokens
from lm.layers.transformer_xl import DistanceScores

# Keys and values of one layer, `{'key': [B, G, S, K], 'value': [B, G, S, K]}`: what a head multiplies lies
# together, and need not be moved for it. 16 bits are kept as integers. Where the mask forgets, there are
# only as many slots as it remembers, and `'place'`, int32 `[B, S]`, says what is in them: -1 is nothing.
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


def project(
    config: ModelConfig, x: jax.Array, tokens: Tokens, source: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries `[B, T, H, K]`, keys and values `[B, S, G, K]` of `[B, T, D]`.

    To be called in a compact method: parameters `query key value`, and norms, become those of the module.

    Args:
        config: the model.
        x: `[B, T, D]`.
        tokens: their `angles` turn queries and keys.
        source: `[B, S, D]`, of which keys and values are; None: of `x`.
    """
    source = x if source is None else source
    c = config
    _, groups, width = head_sizes(c)
    dense = functools.partial(
        Dense, bias=c.bias or c.qkv_bias, dtype=jnp.dtype(c.dtype), matmul=c.matmul
    )
    query = project_query(c, x)
    key = dense((groups, width), name='key')(source)
    value = dense((groups, width), name='value')(source)
    if c.qk_norm:  # Dehghani et al. 2023, https://arxiv.org/abs/2302.05442
        key = _head_norm(c, 'key_norm')(key)
    if tokens.angles is not None:
        q_angles = jax.tree.map(
            lambda a: jnp.tile(a, (1, query.shape[1] // a.shape[1], 1)), tokens.angles
        )
        query, key = rotate(query, q_angles), rotate(key, tokens.angles)
    return query, key, value


def project_query(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Returns queries `[B, T, H, K]`, not turned, of `[B, T, D]`; as `project`."""
    heads, _, width = head_sizes(config)
    dtype = jnp.dtype(config.dtype)
    bias = config.bias or config.qkv_bias
    query = Dense((heads, width), bias=bias, dtype=dtype, matmul=config.matmul, name='query')(x)
    if config.qk_norm:
        query = _head_norm(config, 'query_norm')(query)
    if config.attention_scale:  # Logits are divided by the root of K later.
        query *= config.attention_scale * width**0.5
    return query


def _head_norm(config: ModelConfig, name: str) -> RMSNorm:
    epsilon = config.norm_epsilon or RMSNorm.epsilon
    return RMSNorm(dtype=jnp.dtype(config.dtype), epsilon=epsilon, name=name)


def merge_heads(config: ModelConfig, out: jax.Array) -> jax.Array:
    """Returns `[B, T, D]` of `[B, T, H, K]`; the parameter is `out` of the compact method that calls."""
    scale = (2 * config.num_layers) ** -0.5  # as in MLP
    dense = Dense(
        (config.embed_dim,),
        inputs=2,
        bias=config.bias,
        scale=scale,
        dtype=jnp.dtype(config.dtype),
        matmul=config.matmul,
        name='out',
    )
    return dense(out)


def extras(config: ModelConfig) -> Extras:
    """Returns what else bears on the logits."""
    alibi = config.position == 'alibi'
    slopes = tuple(map(float, alibi_slopes(head_sizes(config)[0]))) if alibi else None
    return Extras(config.attention_softcap or None, slopes)


class Attention(nn.Module):
    """Multi-head self-attention over `[B, T, D]`.

    Attributes:
        config: the model.
        kind: who may attend to whom.
    """

    config: ModelConfig
    kind: Mask

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens = UNKNOWN, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]`, and the cache with these tokens in it.

        Args:
            x: `[B, T, D]`.
            tokens: what is known of them. With a cache a token sees the places up to its own, so that
                what lies after them does no harm.
            cache: keys and values of earlier tokens.
        """
        c = self.config
        if c.position == 'transformer_xl':  # Its own vectors are there instead.
            c = dataclasses.replace(c, bias=False)
        source, segments = x, tokens.segments
        segments = None if segments is None else (segments, segments)
        kind, positions = self.kind, None
        if tokens.order is not None:  # Of ranks, what comes later is never seen.
            kind, positions = parse(causal_form(kind)), (tokens.order, tokens.order)
        if tokens.streams:  # Of the second one there are only queries, of what is of a lower rank.
            source = x[:, : x.shape[1] // 2]
            twice = functools.partial(jnp.concatenate, axis=1)
            positions = twice([tokens.order, tokens.order - 1]), tokens.order
            segments = segments and (twice(2 * [tokens.segments]), tokens.segments)
        query, key, value = project(c, x, tokens, source)
        places = source.shape[1]
        if cache is not None:
            earlier = cache
            cache = write(cache, key, value, tokens.places, self.kind.reach())
            if not tokens.fresh:
                key, value, slots = visible(earlier, cache, key, value, tokens.places)
                positions = places = tokens.places, slots
        bias = None
        # A mask that is asked about ranks says nothing about places.
        both = not self.kind.is_causal or tokens.order is not None
        if tokens.relative is not None:
            bias = relative_bias(tokens.relative, places, c.relative_distance, both)
        if c.position == 'transformer_xl':
            scores = DistanceScores(c, name='relative')
            query, bias = scores(query, key.shape[2], places, tokens.types, both)
        out = attend(
            query,
            key,
            value,
            kind,
            segments=segments,
            in_prefix=tokens.in_prefix,
            positions=positions,
            bias=bias,
            **extras(c)._asdict(),
            implementation=c.attention_implementation,
        )
        return merge_heads(c, out), cache

    @staticmethod
    def make_cache(config: ModelConfig, kind: Mask, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of at most `length` tokens."""
        _, groups, width = head_sizes(config)
        slots = _slots(kind.reach(), length)
        empty = bits(jnp.zeros((batch, groups, slots, width), jnp.dtype(config.dtype)))
        cache = {'key': empty, 'value': empty}
        if forgets(kind.reach()):
            cache['place'] = jnp.full((batch, slots), -1, jnp.int32)
        return cache

    @staticmethod
    def grow(cache: Cache, kind: Mask, length: int) -> Cache:
        """Returns the cache with room for `length` tokens a row."""
        more = _slots(kind.reach(), length) - cache['key'].shape[2]
        grown = {
            name: jnp.pad(cache[name], ((0, 0), (0, 0), (0, more), (0, 0)))
            for name in ('key', 'value')
        }
        if 'place' in cache:
            grown['place'] = jnp.pad(cache['place'], ((0, 0), (0, more)), constant_values=-1)
        return grown


def forgets(reach: Reach) -> bool:
    """Whether a cache need not hold all tokens."""
    return math.isfinite(reach.recent)


def _slots(reach: Reach, length: int) -> int:
    return min(length, reach.pinned + int(reach.recent)) if forgets(reach) else length


def write(cache: Cache, key: jax.Array, value: jax.Array, places: jax.Array, reach: Reach) -> Cache:
    """Returns the cache with keys and values `[B, T, G, K]` of places `[B, T]` of each row.

    Pinned places have slots of their own; the others take turns in the slots after them. Places of -1 are
    not written, nor are those that later ones of these would overwrite.
    """
    slots = cache['key'].shape[2]
    target = places
    kept = places >= 0
    if forgets(reach):
        recent = int(reach.recent)
        last = jnp.max(places, axis=1, keepdims=True)
        kept &= (places < reach.pinned) | (places > last - recent)
        turn = reach.pinned + (places - reach.pinned) % max(recent, 1)
        target = jnp.where(places < reach.pinned, places, turn)
    target = jnp.where(kept, target, slots)  # Past the end: dropped.
    rows = jnp.arange(places.shape[0])[:, None]
    written = {
        name: cache[name].at[rows, :, target].set(bits(new), mode='drop')
        for name, new in (('key', key), ('value', value))
    }
    if 'place' in cache:
        written['place'] = cache['place'].at[rows, target].set(places, mode='drop')
    return written


def visible(
    earlier: Cache, cache: Cache, key: jax.Array, value: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what tokens see: keys and values `[B, S, G, K]`, and their places, int32 `[B or 1, S]`.

    Args:
        earlier: the cache before these tokens.
        cache: and with them.
        key: of these tokens, `[B, T, G, K]`.
        value: of these tokens.
        places: of these tokens, int32 `[B, T]`.
    """
    if 'place' not in cache:
        slots = jnp.arange(cache['key'].shape[2])[None]
        return read(cache['key'], key.dtype), read(cache['value'], key.dtype), slots
    if key.shape[1] == 1:
        return read(cache['key'], key.dtype), read(cache['value'], key.dtype), cache['place']
    # The last of several tokens take slots of what the first of them still see.
    pairs = ((earlier['key'], key), (earlier['value'], value))
    keys, values = (jnp.concatenate([read(a, b.dtype), b], axis=1) for a, b in pairs)
    return keys, values, jnp.concatenate([earlier['place'], places], axis=1)


def read(kept: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `[B, S, G, K]`, keys or values of a cache."""
    return jnp.swapaxes(jax.lax.bitcast_convert_type(kept, dtype), 1, 2)


def bits(x: jax.Array) -> jax.Array:
    """Returns 16-bit floats as integers: to write one, XLA's CPU backend would convert the whole array."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x
