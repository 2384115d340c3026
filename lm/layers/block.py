"""One layer: attention and MLP, each with a norm, dropout and a residual connection."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.masks import Mask
from lm.config import ModelConfig
from lm.errors import lookup
from lm.layers.attention import Attention, Cache
from lm.layers.mlp import MLP
from lm.layers.norm import NORMS
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
        mask: who may attend to whom in this layer.
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
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the new `[B, T, D]` and the new cache; the arguments are those of `Attention`."""
        c = self.config
        place = lookup(PLACEMENTS, c.norm_placement, 'config.model.norm_placement')
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        before, after = place(make_norm(c, 'attention_norm'))
        attention = Attention(c, self.mask, name='attention')
        h, new_cache = attention(before(x), angles, segments, places, cache)
        x = after(x + dropout(h))
        before, after = place(make_norm(c, 'mlp_norm'))
        x = after(x + dropout(MLP(c, name='mlp')(before(x))))
        if cache is None:  # one token a row cannot be laid over a sequence axis
            x = constrain(x, (ROWS, 'sequence', None))
        return x, new_cache


class Group(nn.Module):
    """Layers of different masks, one after the other: what a pattern of masks repeats.

    Attributes:
        config: the model.
        masks: one a layer.
    """

    config: ModelConfig
    masks: tuple[Mask, ...]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None = None,
        segments: jax.Array | None = None,
        places: jax.Array | None = None,
        cache: dict[str, Cache] | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, dict[str, Cache] | None]:
        """As `Block`, with one cache for each, by name."""
        caches = {}
        for i, mask in enumerate(self.masks):
            name = f'block_{i}'
            layer_cache = None if cache is None else cache[name]
            block = Block(self.config, mask, name=name)
            x, caches[name] = block(x, angles, segments, places, layer_cache, deterministic)
        return x, caches if cache is not None else None
