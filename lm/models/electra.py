"""A small generator that fills masks, and a discriminator that says which tokens it made up."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from lm.config import ModelConfig
from lm.layers.mlp import mlp_dim
from lm.models.encoder import Encoder
from lm.models.heads import Head
from lm.models.transformer import make_embed


class Electra(nn.Module):
    """Two encoders that share the embedding of tokens (Clark et al. 2020, https://arxiv.org/abs/2003.10555).

    Attributes:
        config: the discriminator, which is the model that is wanted.
        vocab_size: V, of the tokenizer.
        max_length: tokens; learned positions end here.
        generator_size: the generator's width, as a part of the discriminator's.
    """

    config: ModelConfig
    vocab_size: int
    max_length: int
    generator_size: float = 0.25

    @property
    def padded_vocab_size(self) -> int:
        """V, rounded up to `config.vocab_multiple`."""
        return self._encoder(self.config, parent=None).padded_vocab_size

    def setup(self):
        c, size = self.config, self.generator_size
        heads = max(1, round(size * c.num_heads))
        width = c.head_dim or c.embed_dim // c.num_heads
        smaller = dataclasses.replace(
            c,
            embed_dim=heads * width,
            num_heads=heads,
            num_kv_heads=0,
            mlp_dim=max(1, round(size * mlp_dim(c))),
            embedding_dim=c.embedding_dim or c.embed_dim,
            experts=0,
        )
        self.embed = make_embed(c, self.padded_vocab_size)
        self.generator = self._encoder(smaller, 'tokens', shared=self.embed)
        self.discriminator = self._encoder(c, 'discriminator', shared=self.embed)

    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of the one, float32 `[B, T, V]`, and of the other, `[B, T]`."""
        fills = self.predict(self.hidden(inputs, part='generator'), 'generator')
        return fills, self.predict(self.hidden(inputs, part='discriminator'), 'discriminator')

    def hidden(self, inputs: jax.Array, *args, part: str, **kwargs) -> jax.Array:
        """Returns `[B, T, D]` of the part; the other arguments are those of `Transformer.hidden`."""
        return getattr(self, part).hidden(inputs, *args, **kwargs)

    def predict(self, hidden: jax.Array, name: str, deterministic: bool = True) -> jax.Array:
        """Returns what `generator` or `discriminator` says of tokens, `[..., D]`."""
        part = getattr(self, name)
        return part.predict(hidden, part.heads[0][0], deterministic)

    def _encoder(self, config: ModelConfig, *heads: str, **options) -> Encoder:
        named = tuple((name, Head(name)) for name in heads)
        return Encoder(config, self.vocab_size, self.max_length, heads=named, **options)


def discriminator(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the discriminator alone, an `Encoder` with the head of its name."""
    return {'embed': params['embed'], **params['discriminator']}
