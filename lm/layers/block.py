"""One layer: attention, to itself and to a memory, and MLP, each with a norm, dropout and a residual."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.errors import lookup
from lm.layers.attention import Cache
from lm.layers.cross_attention import CrossAttention
from lm.layers.mixers import mixer
from lm.layers.mlp import MLP
from lm.layers.norm import NORMS
from lm.layers.tokens import UNKNOWN, Tokens
from lm.mesh import ROWS, constrain

# Where a norm stands: before the sublayer (stable at depth: Xiong et al. 2020,
# https://arxiv.org/abs/2002.04745), or after the residual sum (Vaswani et al. 2017). Each entry turns a
# norm into what is done before and after.
PLACEMENTS = {
    'pre': lambda norm: (norm, _same),
    'post': lambda norm: (_same, norm),
}


def _same(x: jax.Array) -> jax.Array:
    return x


def make_norm(config: ModelConfig, name: str | None = None) -> nn.Module:
    """Returns the config's norm; raises InputError if there is none of that name."""
    norm = lookup(NORMS, config.norm, 'config.model.norm')
    return norm(bias=config.bias, dtype=jnp.dtype(config.dtype), name=name)


class Block(nn.Module):
    """A layer: `[B, T, D] -> [B, T, D]`.

    Attributes:
        config: the model.
        kind: what mixes tokens in this layer: a mask, or another entry of `MIXERS`.
        crosses: it also reads the memory that an encoder made.
    """

    config: ModelConfig
    kind: Any
    crosses: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        tokens: Tokens = UNKNOWN,
        cache: Cache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the new `[B, T, D]` and the new cache; the arguments are those of a mixer."""
        c = self.config
        place = lookup(PLACEMENTS, c.norm_placement, 'config.model.norm_placement')
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        before, after = place(make_norm(c, 'attention_norm'))
        mix = mixer(self.kind)(c, self.kind, name='attention')
        own, memory = cache, None
        if self.crosses and cache is not None:
            own, memory = cache['own'], cache['memory']
        h, new_cache = mix(before(x), tokens, own)
        x = after(x + dropout(h))
        if self.crosses:
            before, after = place(make_norm(c, 'cross_attention_norm'))
            h, memory = CrossAttention(c, name='cross_attention')(before(x), tokens, memory)
            x = after(x + dropout(h))
            new_cache = None if cache is None else {'own': new_cache, 'memory': memory}
        before, after = place(make_norm(c, 'mlp_norm'))
        x = after(x + dropout(MLP(c, name='mlp')(before(x))))
        if cache is None:  # one token a row cannot be laid over a sequence axis
            x = constrain(x, (ROWS, 'sequence', None))
        return x, new_cache


class Group(nn.Module):
    """Layers of different kinds, one after the other: what a pattern repeats.

    Attributes:
        config: the model.
        kinds: one a layer.
        crosses: as in `Block`.
    """

    config: ModelConfig
    kinds: tuple[Any, ...]
    crosses: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        tokens: Tokens = UNKNOWN,
        cache: dict[str, Cache] | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, dict[str, Cache] | None]:
        """As `Block`, with one cache for each, by name."""
        caches = {}
        for i, kind in enumerate(self.kinds):
            name = f'block_{i}'
            layer_cache = None if cache is None else cache[name]
            block = Block(self.config, kind, self.crosses, name=name)
            x, caches[name] = block(x, tokens, layer_cache, deterministic)
        return x, caches if cache is not None else None
