"""One layer: attention, to itself and to a memory, and MLP, each with a norm, dropout and a residual."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from lm.config import ModelConfig
from lm.errors import lookup
from lm.layers.attention import Cache
from lm.layers.cross_attention import CrossAttention
from lm.layers.mixers import mixer
from lm.layers.mlp import MLP
from lm.layers.moe import MoE
from lm.layers.norm import make_norm
from lm.layers.tokens import UNKNOWN, Tokens
from lm.mesh import ROWS, constrain

# Where norms stand: before the sublayer (stable at depth: Xiong et al. 2020,
# https://arxiv.org/abs/2002.04745), after the residual sum (Vaswani et al. 2017), or before the sublayer
# and after it (Gemma 2, https://arxiv.org/abs/2408.00118). Each entry turns a maker of norms, by name,
# into what is done before a sublayer, to its output, and to the sum.
PLACEMENTS = {
    'pre': lambda norm: (norm('norm'), _same, _same),
    'post': lambda norm: (_same, _same, norm('norm')),
    'both': lambda norm: (norm('norm'), norm('output_norm'), _same),
}


def _same(x: jax.Array) -> jax.Array:
    return x


class Block(nn.Module):
    """A layer: `[B, T, D] -> [B, T, D]`.

    Attributes:
        config: the model.
        kind: what mixes tokens in this layer: a mask, or another entry of `MIXERS`.
        crosses: it also reads the memory that an encoder made.
        experts: its MLP is a mixture of experts.
    """

    config: ModelConfig
    kind: Any
    crosses: bool = False
    experts: bool = False

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
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        before, inner, after = self._norms('attention')
        mix = mixer(self.kind)(c, self.kind, name='attention')
        own, memory = cache, None
        if self.crosses and cache is not None:
            own, memory = cache['own'], cache['memory']
        h, new_cache = mix(before(x), tokens, own)
        given, x = x, after(x + dropout(inner(h)))
        if self.crosses:
            before, inner, after = self._norms('cross_attention')
            h, memory = CrossAttention(c, name='cross_attention')(before(x), tokens, memory)
            x = after(x + dropout(inner(h)))
            new_cache = None if cache is None else {'own': new_cache, 'memory': memory}
        before, inner, after = self._norms('mlp')
        h = before(given if c.parallel_residual else x)
        if self.experts:
            h = MoE(c, name='mlp')(h, tokens, deterministic)
        else:
            h = MLP(c, name='mlp')(h)
        x = after(x + dropout(inner(h)))
        if cache is None:  # one token a row cannot be laid over a sequence axis
            x = constrain(x, (ROWS, 'sequence', None))
        self.sow('intermediates', 'output', x)  # Kept where a caller asks for it.
        return x, new_cache

    def _norms(self, name: str) -> tuple[Callable[[jax.Array], jax.Array], ...]:
        """Returns what is done before a sublayer, to its output, and to the sum of the two."""
        place = lookup(PLACEMENTS, self.config.norm_placement, 'config.model.norm_placement')
        return place(lambda kind: make_norm(self.config, f'{name}_{kind}'))


class Group(nn.Module):
    """Layers of different kinds, one after the other: what a pattern repeats.

    Attributes:
        config: the model.
        kinds: one a layer.
        experts: as in `Block`, one a layer.
        crosses: as in `Block`.
    """

    config: ModelConfig
    kinds: tuple[Any, ...]
    experts: tuple[bool, ...]
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
        for i, (kind, experts) in enumerate(zip(self.kinds, self.experts, strict=True)):
            name = f'block_{i}'
            layer_cache = None if cache is None else cache[name]
            block = Block(self.config, kind, self.crosses, experts, name=name)
            x, caches[name] = block(x, tokens, layer_cache, deterministic)
        return x, caches if cache is not None else None
