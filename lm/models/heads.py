"""What is predicted from hidden vectors, besides the next token.

A model has heads by name. Each is a module of the table `HEADS`, called with hidden vectors `[..., D]` of
the tokens that it is about.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.errors import lookup
from lm.layers.dense import Dense
from lm.layers.embed import Embed
from lm.layers.mlp import activation
from lm.layers.norm import make_norm


@dataclasses.dataclass(frozen=True)
class Head:
    """Which head, by the name of its kind, and how many numbers it gives (0 where the kind decides)."""

    kind: str
    size: int = 0


class _Head(nn.Module):
    """What all have.

    Attributes:
        config: the model.
        head: its description.
        embed: the embedding of tokens.
    """

    config: ModelConfig
    head: Head
    embed: Embed


class Tokens(_Head):
    """Logits of tokens: BERT's transform, then the embedding, transposed, and a bias.

    Devlin et al. 2018, https://arxiv.org/abs/1810.04805; the code's `get_masked_lm_output`.
    """

    @nn.compact
    def __call__(self, hidden: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns float32 `[..., V]`."""
        c = self.config
        width = (self.embed.features,)
        x = Dense(width, bias=c.bias, dtype=jnp.dtype(c.dtype), name='dense')(hidden)
        x = make_norm(c, 'norm')(activation(c).function(x))
        return Output(c, self.head, self.embed, name='output')(x)


class Output(_Head):
    """Logits of tokens: the embedding, transposed, and a bias."""

    @nn.compact
    def __call__(self, hidden: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns float32 `[..., V]`."""
        logits = self.embed.attend(hidden)
        if self.config.bias:
            logits += self.param('bias', nn.initializers.zeros, logits.shape[-1:])
        return logits


class Pooled(_Head):
    """Numbers for a whole text, or two, from its first token: BERT's pooler, then a layer."""

    @nn.compact
    def __call__(self, hidden: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns float32 `[..., size]`."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = jnp.tanh(Dense((c.embed_dim,), bias=True, dtype=dtype, name='pooler')(hidden))
        x = nn.Dropout(c.dropout, deterministic=deterministic)(x)
        return Dense((self.head.size,), bias=True, dtype=dtype, name='out')(x).astype(jnp.float32)


class EachToken(_Head):
    """Numbers for each token: labels of tokens, or of the first and the last of a span."""

    @nn.compact
    def __call__(self, hidden: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns float32 `[..., size]`."""
        c = self.config
        x = nn.Dropout(c.dropout, deterministic=deterministic)(hidden)
        dense = Dense((self.head.size,), bias=True, dtype=jnp.dtype(c.dtype), name='out')
        return dense(x).astype(jnp.float32)


class Discriminator(_Head):
    """Whether each token was replaced (Clark et al. 2020, https://arxiv.org/abs/2003.10555)."""

    @nn.compact
    def __call__(self, hidden: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns float32 `[...]`, log odds."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = Dense((c.embed_dim,), bias=True, dtype=dtype, name='dense')(hidden)
        x = activation(c).function(x)
        return Dense((1,), bias=True, dtype=dtype, name='out')(x).astype(jnp.float32)[..., 0]


HEADS: dict[str, type[nn.Module]] = {
    'tokens': Tokens,
    'output': Output,
    'pooled': Pooled,
    'each_token': EachToken,
    'discriminator': Discriminator,
}


def make(config: ModelConfig, head: Head, embed: Embed, name: str) -> nn.Module:
    """Returns the module of a head; raises InputError if there is no such kind."""
    return lookup(HEADS, head.kind, f"the kind of head '{name}'")(config, head, embed)
