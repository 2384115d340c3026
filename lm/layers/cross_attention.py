"""Attention of one text to another, which an encoder has read."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import attend
from lm.attention.masks import full
from lm.config import ModelConfig
from lm.layers.attention import merge_heads, project, project_query
from lm.layers.tokens import UNKNOWN, Tokens

# Keys and values of the memory, `{'key', 'value': [B, S, G, K], 'segments': int32 [B, S]}`; nothing before
# a memory was read.
Cache = dict[str, jax.Array]


class CrossAttention(nn.Module):
    """Multi-head attention of `[B, T, D]` to a memory `[B, S, D]` (Vaswani et al. 2017).

    It knows no positions: those of the memory are in its vectors.

    Attributes:
        config: the model.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]`, and the cache with the memory's keys and values in it.

        Args:
            x: `[B, T, D]`.
            tokens: what is known of them: their memory, and who may read what of it. Without a memory
                that of the cache is read.
            cache: of an earlier call.
        """
        c = self.config
        if tokens.memory is None:
            query, key, value = project_query(c, x), cache['key'], cache['value']
            k_segments = cache['segments']
        else:
            query, key, value = project(c, x, UNKNOWN, tokens.memory)
            k_segments = tokens.memory_segments
            if k_segments is None:
                k_segments = jnp.ones(key.shape[:2], jnp.int32)
        q_segments = tokens.segments
        if q_segments is None:
            q_segments = jnp.ones(query.shape[:2], jnp.int32)
        segments = q_segments, k_segments
        # Kernels that are forced are for rows that attend to themselves; the plain form is for all.
        plain = c.attention_implementation == 'xla'
        out = attend(
            query,
            key,
            value,
            full,
            segments=segments,
            softcap=c.attention_softcap or None,
            implementation='xla' if plain else 'auto',
        )
        if cache is not None:
            cache = {'key': key, 'value': value, 'segments': k_segments}
        return merge_heads(c, out), cache
