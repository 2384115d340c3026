"""Models: an encoder, a decoder, and both."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from lm.config import Config
from lm.errors import InputError, lookup
from lm.models.decoder import Decoder
from lm.models.electra import Electra
from lm.models.electra import discriminator as discriminator
from lm.models.encoder import Encoder
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.heads import Head

Model = Encoder | Decoder | EncoderDecoder | Electra

# Values of `config.model.architecture`.
ARCHITECTURES = {'decoder': Decoder, 'encoder': Encoder, 'encoder_decoder': EncoderDecoder}


def build(
    config: Config,
    vocab_size: int,
    heads: Mapping[str, Head] = MappingProxyType({}),
    streams: bool = False,
) -> Model:
    """Returns the model of a config.

    Args:
        config: the run's.
        vocab_size: V, of the tokenizer.
        heads: of an encoder, by name.
        streams: an encoder has a second stream, for permutation language models.

    Raises:
        InputError: there is no such architecture.
    """
    model, length = config.model, config.data.length
    kind = lookup(ARCHITECTURES, model.architecture, 'config.model.architecture')
    if model.embedding_dim and kind is EncoderDecoder:
        raise InputError(
            f'config.model.embedding_dim = {model.embedding_dim} is for encoders and decoders; set it to 0.'
        )
    if kind is Encoder:
        return Encoder(model, vocab_size, length, streams=streams, heads=tuple(heads.items()))
    if kind is EncoderDecoder:
        return EncoderDecoder(model, vocab_size, length, config.data.source_length or length)
    return Decoder(model, vocab_size, length)


def example(model: Model) -> dict[str, Any]:
    """Returns arguments of a call, as small as can be, that touches every parameter."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    if isinstance(model, EncoderDecoder):
        return {'inputs': tokens, 'encoder_inputs': tokens}
    streams = getattr(model, 'streams', False)
    return {'inputs': tokens} | ({'order': tokens} if streams else {})
