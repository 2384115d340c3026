"""Attention to chosen blocks in a layer: `topk(...)` of `config.model.attention`.

The parameters are those of `Attention`. The cache holds all keys and values, the mean key of each block,
and the blocks that each chunk of tokens chose: a step of decoding reads the means, the chosen blocks, and
its own block once more, whose mean it makes anew. What is in the cache is what training computes from the
same tokens, and places past a row's end may hold anything: they are written again before they are seen.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import chosen, topk
from lm.attention.masks import EVERYTHING
from lm.attention.nsa import NSA
from lm.attention.topk import TopK
from lm.config import ModelConfig
from lm.layers.attention import bits, extras, head_sizes, merge_heads, project, read, write
from lm.layers.tokens import UNKNOWN, Tokens

# `{'key', 'value': [B, G, M * size, K], 'mean': float32 [B, G, M, K], 'chosen': int32 [B, G, N, n]}`: of M
# blocks, and of N chunks of tokens with n blocks each. 16 bits are kept as integers.
Cache = dict[str, jax.Array]


class TopKAttention(nn.Module):
    """Multi-head self-attention over `[B, T, D]`, each chunk of queries to the blocks that it chooses.

    Attributes:
        config: the model.
        kind: how many blocks of what size.
    """

    config: ModelConfig
    kind: TopK

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens = UNKNOWN, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]` and the new cache; the arguments are those of `Attention`."""
        c, kind = self.config, self.kind
        query, key, value = project(c, x, tokens)
        if cache is not None:
            cache = remember(cache, query, key, value, tokens, kind)
        if cache is None or tokens.fresh:
            out = topk.attend(query, key, value, kind, segments=tokens.segments, extras=extras(c))
        else:
            out = attend_to_cache(query, cache, tokens.places, kind, extras(c))
        return merge_heads(c, out), cache

    @staticmethod
    def make_cache(config: ModelConfig, kind: TopK, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of at most `length` tokens."""
        blocks = -(-length // kind.size)
        _, groups, width = head_sizes(config)
        mean = jnp.zeros((batch, groups, blocks, width), jnp.float32)
        return blocks_cache(config, kind, batch, length) | {'mean': mean}

    @staticmethod
    def grow(cache: Cache, kind: TopK, length: int) -> Cache:
        """Returns the cache with room for `length` tokens a row."""
        return grow_blocks(cache, kind, length) | {
            'mean': lengthen(cache['mean'], -(-length // kind.size))
        }


def remember(
    cache: Cache,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    tokens: Tokens,
    kind: TopK,
) -> Cache:
    """Returns the cache with tokens in it: their keys and values, means, and what they choose."""
    cache = cache | remember_keys(cache, key, value, tokens.places)
    rows = jnp.arange(len(key))[:, None]
    _, groups, blocks, width = cache['mean'].shape
    # The blocks that tokens next to each other may lie in; those past the end are dropped.
    touched = jnp.arange((key.shape[1] - 2) // kind.size + 2)
    touched += jnp.maximum(tokens.places[:, :1], 0) // kind.size  # [B, touched]
    pages = cache['key'].reshape(-1, groups, blocks, kind.size, width)
    pages = pages[rows, :, jnp.minimum(touched, blocks - 1)]  # [B, touched, G, size, K]
    pages = jax.lax.bitcast_convert_type(pages, key.dtype).astype(jnp.float32)
    mean = cache['mean'].at[rows, :, touched].set(jnp.mean(pages, axis=3), mode='drop')
    query, places = beginnings(query, tokens, kind)
    picked = topk.choose(query, mean, kind, places=places)
    return cache | {'mean': mean, 'chosen': remember_choice(cache, picked, places, kind)}


# --- what all attention to chosen blocks has ------------------------------------------------------


def blocks_cache(config: ModelConfig, kind: TopK | NSA, batch: int, length: int) -> Cache:
    """Returns room for keys, values and choices of `batch` rows of at most `length` tokens."""
    _, groups, width = head_sizes(config)
    blocks = -(-length // kind.size)
    empty = jnp.zeros((batch, groups, blocks * kind.size, width), jnp.dtype(config.dtype))
    choices = batch, groups, blocks * kind.size // kind.every, min(kind.blocks, blocks)
    return {'key': bits(empty), 'value': bits(empty), 'chosen': jnp.full(choices, -1, jnp.int32)}


def grow_blocks(cache: Cache, kind: TopK | NSA, length: int) -> Cache:
    """Returns the keys, values and choices of a cache, with room for `length` tokens a row."""
    blocks = -(-length // kind.size)
    picked = lengthen(cache['chosen'], blocks * kind.size // kind.every, -1)
    more = min(kind.blocks, blocks) - picked.shape[3]
    return {
        'key': lengthen(cache['key'], blocks * kind.size),
        'value': lengthen(cache['value'], blocks * kind.size),
        'chosen': jnp.pad(picked, ((0, 0), (0, 0), (0, 0), (0, more)), constant_values=-1),
    }


def lengthen(x: jax.Array, size: int, fill: int = 0) -> jax.Array:
    """Returns `[B, G, size, ...]` of `[B, G, S, ...]`, filled up."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0)), constant_values=fill)


def remember_keys(cache: Cache, key: jax.Array, value: jax.Array, places: jax.Array) -> Cache:
    """Returns the keys and values of a cache with `[B, T, G, K]` at places `[B, T]`."""
    kept = {name: cache[name] for name in ('key', 'value')}
    return write(kept, key, value, places, EVERYTHING)


def beginnings(query: jax.Array, tokens: Tokens, kind: TopK | NSA) -> tuple[jax.Array, jax.Array]:
    """Returns queries and places, those where chunks begin among them."""
    if not tokens.fresh:
        return query, tokens.places
    return query[:, :: kind.every], tokens.places[:, :: kind.every]  # Of places 0, 1, 2, ...


def remember_choice(
    cache: Cache, picked: jax.Array, places: jax.Array, kind: TopK | NSA
) -> jax.Array:
    """Returns the choices of a cache with `[B, G, N, n]`, of queries at `[B, N]`, where chunks begin."""
    begins = (places >= 0) & (places % kind.every == 0)
    chunks = jnp.where(begins, places // kind.every, cache['chosen'].shape[2])  # Dropped.
    rows = jnp.arange(len(places))[:, None]
    return cache['chosen'].at[rows, :, chunks].set(jnp.swapaxes(picked, 1, 2), mode='drop')


def attend_to_cache(
    query: jax.Array,
    cache: Cache,
    places: jax.Array,
    kind: TopK | NSA,
    options: chosen.Extras,
) -> jax.Array:
    """Returns `[B, T, H, K]`: queries at places `[B, T]` see the blocks that their chunks chose."""
    rows = jnp.arange(len(places))[:, None]
    picked = cache['chosen'][rows, :, jnp.maximum(places, 0) // kind.every]  # [B, T, G, n]
    return chosen.attend(
        query,
        read(cache['key'], query.dtype),
        read(cache['value'], query.dtype),
        jnp.swapaxes(picked, 1, 2),
        size=kind.size,
        every=1,
        places=places,
        extras=options,
    )
