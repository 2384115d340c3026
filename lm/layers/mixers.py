"""What mixes tokens in a layer: one module for each kind of entry of `config.model.attention`.

A mixer has the fields `config` and `kind`, is called with `(x, tokens, cache)` and returns `[B, T, D]` and
the new cache. `make_cache` and `grow` are static methods: what it remembers is its own matter.
"""

from typing import Any

import flax.linen as nn

from lm.attention.linear import GatedDelta, GatedLinear, Linear, Performer
from lm.attention.masks import Mask
from lm.attention.nsa import NSA
from lm.attention.topk import TopK
from lm.config import ModelConfig
from lm.layers.attention import Attention
from lm.layers.linear_attention import GatedDeltaNet, GatedLinearAttention, LinearAttention
from lm.layers.nsa_attention import NSAttention
from lm.layers.topk_attention import TopKAttention

MIXERS: dict[type, type[nn.Module]] = {
    Mask: Attention,
    TopK: TopKAttention,
    NSA: NSAttention,
    Linear: LinearAttention,
    Performer: LinearAttention,
    GatedLinear: GatedLinearAttention,
    GatedDelta: GatedDeltaNet,
}


def mixer(kind: Any) -> type[nn.Module]:
    """Returns the module that mixes tokens as `kind` says."""
    return next(module for known, module in MIXERS.items() if isinstance(kind, known))


def make_cache(config: ModelConfig, kind: Any, batch: int, length: int) -> dict:
    """Returns an empty cache of one layer, for `batch` rows of at most `length` tokens."""
    return mixer(kind).make_cache(config, kind, batch, length)


def grow(cache: dict, kind: Any, length: int) -> dict:
    """Returns a layer's cache with room for `length` tokens a row."""
    return mixer(kind).grow(cache, kind, length)
