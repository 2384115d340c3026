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
from lm.attention.topk import TopK
from lm.config import ModelConfig
from lm.layers.attention import bits, extras, head_sizes, merge_heads, project, read, write
from lm.layers.tokens import Tokens

# `{'key', 'value': [B, G, M * size, K], 'mean': float32 [B, G, M, K], 'chosen': int32 [B, G, N, n]}`: of M
# blocks, and of N chunks of tokens with n blocks each.
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
        self, x: jax.Array, tokens: Tokens, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]` and the new cache; the arguments are those of `Attention`."""
        c, kind = self.config, self.kind
        query, key, value = project(c, x, tokens)
        if cache is not None:
            cache = remember(cache, query, key, value, tokens, kind)
        if cache is None or tokens.fresh:
            out = topk.attend(query, key, value, kind, segments=tokens.segments, extras=extras(c))
        else:
            out = chosen.attend(
                query,
                read(cache['key'], key.dtype),
                read(cache['value'], key.dtype),
                of_chunks(cache['chosen'], tokens.places, kind.every),
                size=kind.size,
                every=1,
                places=tokens.places,
                extras=extras(c),
            )
        return merge_heads(c, out), cache

    @staticmethod
    def make_cache(config: ModelConfig, kind: TopK, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of at most `length` tokens."""
        _, groups, width = head_sizes(config)
        blocks = -(-length // kind.size)
        slots = blocks * kind.size
        empty = bits(jnp.zeros((batch, groups, slots, width), jnp.dtype(config.dtype)))
        each = min(kind.blocks, blocks)
        return {
            'key': empty,
            'value': empty,
            'mean': jnp.zeros((batch, groups, blocks, width), jnp.float32),
            'chosen': jnp.full((batch, groups, slots // kind.every, each), -1, jnp.int32),
        }

    @staticmethod
    def grow(cache: Cache, kind: TopK, length: int) -> Cache:
        """Returns the cache with room for `length` tokens a row."""
        batch, groups, _, width = cache['mean'].shape
        blocks = -(-length // kind.size)
        each = min(kind.blocks, blocks)
        shapes = {
            'key': (blocks * kind.size, width),
            'value': (blocks * kind.size, width),
            'mean': (blocks, width),
            'chosen': (blocks * kind.size // kind.every, each),
        }
        return {
            name: jnp.pad(
                x,
                [
                    (0, more - now)
                    for more, now in zip((batch, groups, *shapes[name]), x.shape, strict=True)
                ],
                constant_values=-1 if name == 'chosen' else 0,
            )
            for name, x in cache.items()
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
    places = tokens.places
    written = write(
        {name: cache[name] for name in ('key', 'value')}, key, value, places, EVERYTHING
    )
    rows = jnp.arange(len(places))[:, None]
    size, (_, groups, blocks, width) = kind.size, cache['mean'].shape
    # The blocks that tokens next to each other may lie in; those past the end are dropped.
    touched = (places.shape[1] - 2) // size + 2
    touched = jnp.maximum(places[:, :1], 0) // size + jnp.arange(touched)  # [B, touched]
    pages = written['key'].reshape(-1, groups, blocks, size, width)
    pages = jax.lax.bitcast_convert_type(
        pages[rows, :, jnp.minimum(touched, blocks - 1)], key.dtype
    )
    mean = jnp.mean(pages.astype(jnp.float32), axis=3)  # [B, touched, G, K]
    mean = cache['mean'].at[rows, :, touched].set(mean, mode='drop')
    if tokens.fresh:  # Places are 0, 1, 2, ...: those where chunks begin are known.
        query, places = query[:, :: kind.every], places[:, :: kind.every]
    picked = topk.choose(query, mean, kind, places=places)  # [B, G, T, n]
    begins = (places >= 0) & (places % kind.every == 0)
    chunk = jnp.where(
        begins, places // kind.every, cache['chosen'].shape[2]
    )  # Past the end: dropped.
    picked = cache['chosen'].at[rows, :, chunk].set(jnp.swapaxes(picked, 1, 2), mode='drop')
    return written | {'mean': mean, 'chosen': picked}


def of_chunks(picked: jax.Array, places: jax.Array, every: int) -> jax.Array:
    """Returns int32 `[B, G, T, n]`, what the chunks of tokens at `[B, T]` chose, of `[B, G, N, n]`."""
    rows = jnp.arange(len(places))[:, None]
    return jnp.swapaxes(picked[rows, :, jnp.maximum(places, 0) // every], 1, 2)
