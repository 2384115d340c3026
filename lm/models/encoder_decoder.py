"""An encoder and a decoder that reads it: the Transformer of 2017, T5, BART."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from lm.config import ModelConfig
from lm.models.decoder import Cache, Decoder
from lm.models.encoder import Encoder
from lm.models.transformer import make_embed


class EncoderDecoder(nn.Module):
    """Next-token logits of one text, given another.

    The two share the embedding. The encoder has `config.encoder_layers` layers, which go through
    `config.encoder_attention`.

    Attributes:
        config: the model.
        vocab_size: V, of the tokenizer.
        max_length: tokens of a target; learned positions end here.
        max_source: tokens of a source; learned positions end here.
    """

    config: ModelConfig
    vocab_size: int
    max_length: int
    max_source: int

    @property
    def padded_vocab_size(self) -> int:
        """V, rounded up to `config.vocab_multiple`."""
        return self._decoder().padded_vocab_size

    @property
    def kinds(self) -> tuple[Any, ...]:
        """What the layers of the decoder go through."""
        return self._decoder().kinds

    def setup(self):
        c = self.config
        encoder_config = dataclasses.replace(
            c, attention=c.encoder_attention, num_layers=c.encoder_layers or c.num_layers
        )
        self.embed = make_embed(c, self.padded_vocab_size)
        self.encoder = Encoder(encoder_config, self.vocab_size, self.max_source, self.embed)
        self.decoder = self._decoder(self.embed)

    def __call__(self, inputs: jax.Array, *args, **kwargs) -> jax.Array:
        """Returns logits, float32 `[B, T, V]`; the arguments are those of `hidden`."""
        return self.logits(self.hidden(inputs, *args, **kwargs))

    def hidden(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
        *,
        encoder_inputs: jax.Array,
        encoder_positions: jax.Array | None = None,
        encoder_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Returns what the logits are computed from, `[B, T, D]` in the compute dtype.

        Args:
            inputs: int32 `[B, T]`, as for a decoder; so are the next three.
            positions: int32 `[B, T]`.
            segment_ids: int32 `[B, T]`.
            deterministic: no dropout. Else the caller gives a `dropout` rng.
            encoder_inputs: int32 `[B, S]`, the sources.
            encoder_positions: int32 `[B, S]`. None: 0, 1, 2, ...
            encoder_segment_ids: int32 `[B, S]`: segment i of the sources is that of segment i of the
                targets, and 0 is padding. None: one a row.
        """
        memory = self.encode(encoder_inputs, encoder_positions, encoder_segment_ids, deterministic)
        return self.decoder.hidden(
            inputs,
            positions,
            segment_ids,
            deterministic,
            memory=memory,
            memory_segments=encoder_segment_ids,
        )

    def encode(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Returns the memory, `[B, S, D]`, of sources, int32 `[B, S]`; as `Transformer.hidden`."""
        return self.encoder.hidden(inputs, positions, segment_ids, deterministic)

    def decode(self, *args, **kwargs) -> tuple[jax.Array, Cache]:
        """As `Decoder.decode`; the prompt comes with the memory."""
        return self.decoder.decode(*args, **kwargs)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 `[..., V]` of `[..., D]`."""
        return self.decoder.logits(hidden)

    def for_decoding(self, params: dict) -> dict:
        """As `Decoder.for_decoding`."""
        ready = self._decoder().for_decoding(params['decoder'] | {'embed': params['embed']})
        embed = ready.pop('embed')
        return params | {'decoder': ready, 'embed': embed}

    def make_cache(self, batch: int, length: int) -> Cache:
        """As `Decoder.make_cache`."""
        return self._decoder().make_cache(batch, length)

    def grow(self, cache: Cache, length: int) -> Cache:
        """As `Decoder.grow`."""
        return self._decoder().grow(cache, length)

    def _decoder(self, shared: Any = None) -> Decoder:
        options = {} if shared is not None else {'parent': None}
        return Decoder(
            self.config, self.vocab_size, self.max_length, shared, crosses=True, **options
        )
