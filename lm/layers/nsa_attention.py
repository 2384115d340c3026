"""Native sparse attention in a layer: `nsa(...)` of `config.model.attention`.

Parameters beside those of `Attention`: `gate`, of the branches, and the weights of summaries. The cache is
that of `topk_attention.py`, with summaries in place of means: a step of decoding reads the summaries, the
chosen blocks, the window, and the keys of the summaries that it makes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import attend, nsa
from lm.attention.block import Extras
from lm.attention.masks import Window, causal
from lm.attention.nsa import NSA
from lm.config import ModelConfig
from lm.layers.attention import bits, extras, head_sizes, merge_heads, project, read
from lm.layers.dense import Dense
from lm.layers.tokens import UNKNOWN, Tokens
from lm.layers.topk_attention import (
    attend_to_cache,
    beginnings,
    blocks_cache,
    grow_blocks,
    lengthen,
    remember_choice,
    remember_keys,
)

# As in `topk_attention.py`, with `'summary_key', 'summary_value': [B, G, M, K]` of the M summaries.
Cache = dict[str, jax.Array]
SUMMARIES = ('summary_key', 'summary_value')


class NSAttention(nn.Module):
    """Multi-head self-attention over `[B, T, D]` in three branches.

    Attributes:
        config: the model.
        kind: the sizes.
    """

    config: ModelConfig
    kind: NSA

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens = UNKNOWN, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]` and the new cache; the arguments are those of `Attention`."""
        c, kind, options = self.config, self.kind, extras(self.config)
        heads, groups, width = head_sizes(c)
        query, key, value = project(c, x, tokens)
        gates = Dense((heads, 3), bias=c.bias, dtype=jnp.dtype(c.dtype), name='gate')(x)
        gates = nn.sigmoid(gates.astype(jnp.float32))  # [B, T, H, 3]
        shape = kind.length, groups, width  # Summaries begin as means.
        weights = [self.param(n, nn.initializers.ones, shape) / kind.length for n in SUMMARIES]
        if cache is not None:
            cache = remember(cache, query, key, value, weights, tokens, kind, options)
        if cache is None or tokens.fresh:
            segments = tokens.segments
            out = nsa.attend(
                query, key, value, gates, weights, kind, segments=segments, extras=options
            )
        else:
            places = tokens.places
            summaries = (read(cache[name], query.dtype) for name in SUMMARIES)
            first = nsa.attend_to_summaries(query, *summaries, kind, places, extras=options)
            second = attend_to_cache(query, cache, places, kind, options)
            third = attend_to_window(query, cache, places, kind, options)
            out = nsa.merge((first, second, third), gates)
        return merge_heads(c, out), cache

    @staticmethod
    def make_cache(config: ModelConfig, kind: NSA, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of at most `length` tokens."""
        cache = blocks_cache(config, kind, batch, length)
        shape = (batch, *cache['key'].shape[1:2], cache['key'].shape[2] // kind.stride)
        empty = bits(jnp.zeros((*shape, cache['key'].shape[3]), jnp.dtype(config.dtype)))
        return cache | dict.fromkeys(SUMMARIES, empty)

    @staticmethod
    def grow(cache: Cache, kind: NSA, length: int) -> Cache:
        """Returns the cache with room for `length` tokens a row."""
        grown = grow_blocks(cache, kind, length)
        count = grown['key'].shape[2] // kind.stride
        return grown | {name: lengthen(cache[name], count) for name in SUMMARIES}


def remember(
    cache: Cache,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    weights: list[jax.Array],
    tokens: Tokens,
    kind: NSA,
    options: Extras,
) -> Cache:
    """Returns the cache with tokens in it: their keys and values, summaries, and what they choose."""
    cache = cache | remember_keys(cache, key, value, tokens.places)
    rows = jnp.arange(len(key))[:, None]
    # The summaries that may end at one of the tokens; those past the end are dropped.
    first = (jnp.maximum(tokens.places[:, :1], 0) - kind.length) // kind.stride + 1
    touched = jnp.maximum(first, 0) + jnp.arange((key.shape[1] - 1) // kind.stride + 1)
    count = (touched.shape[1] - 1) * kind.stride + kind.length
    places = touched[:, :1] * kind.stride + jnp.arange(count)
    for name, source, weight in zip(SUMMARIES, ('key', 'value'), weights, strict=True):
        x = nsa.summarize(at_places(cache[source], places, key.dtype), weight, kind.stride)
        new = bits(x[:, : touched.shape[1]])
        cache |= {name: cache[name].at[rows, :, touched].set(new, mode='drop')}
    query, places = beginnings(query, tokens, kind)
    picked = nsa.choose(query, read(cache['summary_key'], key.dtype), kind, places, extras=options)
    return cache | {'chosen': remember_choice(cache, picked, places, kind)}


def attend_to_window(
    query: jax.Array, cache: Cache, places: jax.Array, kind: NSA, options: Extras
) -> jax.Array:
    """Returns `[B, T, H, K]`: queries at places `[B, T]` see the last tokens."""
    slots = cache['key'].shape[2]
    start = jnp.maximum(places[:, :1] - kind.window + 1, 0)
    k_places = start + jnp.arange(min(kind.window + places.shape[1] - 1, slots))
    k_places = jnp.where(k_places < slots, k_places, -1)  # not there
    key, value = (at_places(cache[name], k_places, query.dtype) for name in ('key', 'value'))
    mask = causal & Window(kind.window)
    return attend(query, key, value, mask, positions=(places, k_places), **options._asdict())


def at_places(kept: jax.Array, places: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `[B, S, G, K]`, what a cache `[B, G, slots, K]` holds at places `[B, S]`."""
    rows, last = jnp.arange(len(places))[:, None], kept.shape[2] - 1
    found = kept[rows, :, jnp.clip(places, 0, last)]
    return jax.lax.bitcast_convert_type(found, dtype)
