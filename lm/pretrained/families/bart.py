"""BART (Lewis et al. 2020) and Marian (the OPUS-MT translators)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lm.pretrained.family import (
    ACTIVATIONS,
    Both,
    Entry,
    Family,
    Key,
    Only,
    Tensor,
    always,
    attention,
    ignored,
    linear,
    norm,
    table,
    unsupported,
)


def _same(ours: str, encoder: str, decoder: str) -> Both:
    """A size that encoder and decoder have in common."""

    def read(theirs: Mapping[str, Any]) -> dict[str, Any]:
        if theirs[encoder] != theirs[decoder]:
            raise unsupported(encoder, theirs[encoder], (theirs[decoder],))
        return {ours: theirs[encoder]}

    return Both(
        (encoder, decoder), read, lambda values: {encoder: values[ours], decoder: values[ours]}
    )


def _scale(scaled: Callable[[int], float], plain: Callable[[int], float]) -> Both:
    """What embeddings are multiplied by, of D, where `scale_embedding` is set and where it is not."""

    def read(theirs: Mapping[str, Any]) -> dict[str, Any]:
        scale = scaled if theirs.get('scale_embedding', False) else plain
        return {'model.embed_scale': scale(theirs['d_model'])}

    def write(ours: Mapping[str, Any]) -> dict[str, Any]:
        scale = ours['model.embed_scale']
        return {'scale_embedding': scale == scaled(ours['model.embed_dim'])}

    return Both(('scale_embedding',), read, write)


_CONFIG: tuple[Entry, ...] = (
    always(
        {
            'model.architecture': 'encoder_decoder',
            'model.norm': 'layernorm',
            'model.norm_epsilon': 1e-5,
            'model.norm_placement': 'post',
            'model.bias': True,
            'model.logit_bias': True,
            'objective.name': 'seq2seq',
        }
    ),
    Key('vocab_size', 'model.vocab_size'),
    Key('max_position_embeddings', 'data.length', 1024),
    Key('d_model', 'model.embed_dim'),
    Key('encoder_layers', 'model.encoder_layers'),
    Key('decoder_layers', 'model.num_layers'),
    _same('model.num_heads', 'encoder_attention_heads', 'decoder_attention_heads'),
    _same('model.mlp_dim', 'encoder_ffn_dim', 'decoder_ffn_dim'),
    Key(
        'activation_function',
        'model.activation',
        'gelu',
        ACTIVATIONS | {'swish': 'silu'},
    ),
    Key('dropout', 'model.dropout', 0.1),
    Only(is_encoder_decoder=True, is_decoder=False, tie_word_embeddings=True),
    Only(add_final_layer_norm=False, normalize_before=False),
    ignored(
        *('activation_dropout', 'attention_dropout', 'encoder_layerdrop'),
        *('decoder_layerdrop', 'classif_dropout', 'num_hidden_layers', 'add_bias_logits'),
        'force_bos_token_to_be_generated',
    ),
)


_NAMES = 'q_proj k_proj v_proj out_proj'


def _side(side: str) -> tuple[Tensor, ...]:
    layer, ours = f'model.{side}.layers.{{n}}', f'{side}/layers'
    return (
        table(f'model.{side}.embed_positions.weight', f'{side}/position'),
        *norm(f'model.{side}.layernorm_embedding', f'{side}/embed_norm'),
        *attention(f'{layer}.self_attn', _NAMES, f'{ours}/attention'),
        *norm(f'{layer}.self_attn_layer_norm', f'{ours}/attention_norm'),
        *linear(f'{layer}.fc1', f'{ours}/mlp/up'),
        *linear(f'{layer}.fc2', f'{ours}/mlp/down'),
        *norm(f'{layer}.final_layer_norm', f'{ours}/mlp_norm'),
    )


BART = Family(
    name='bart',
    classes={'BartForConditionalGeneration': ''},
    config=(
        *_CONFIG,
        always(
            {
                'model.position': 'learned',
                'model.position_offset': 2,
                'model.embed_norm': True,
            }
        ),
        _scale(lambda width: width**0.5, lambda width: 1.0),
    ),
    prefix='model.',
    tensors=(
        table('model.shared.weight', 'embed'),
        *_side('encoder'),
        *_side('decoder'),
        *attention(
            'model.decoder.layers.{n}.encoder_attn', _NAMES, 'decoder/layers/cross_attention'
        ),
        *norm(
            'model.decoder.layers.{n}.encoder_attn_layer_norm',
            'decoder/layers/cross_attention_norm',
        ),
        Tensor('final_logits_bias', 'decoder/logit_bias', '1 V -> V', optional=True),
    ),
    tied={
        'model.encoder.embed_tokens.weight': 'model.shared.weight',
        'model.decoder.embed_tokens.weight': 'model.shared.weight',
        'lm_head.weight': 'model.shared.weight',
    },
    buffers=(r'(encoder|decoder)\.version$',),
)


MARIAN = dataclasses.replace(
    BART,
    name='marian',
    classes={'MarianMTModel': ''},
    config=(
        *_CONFIG,
        always({'model.position': 'sinusoidal'}),
        # Ours with waves for positions are scaled up to meet them.
        _scale(lambda width: 1.0, lambda width: width**-0.5),
        Only(share_encoder_decoder_embeddings=True),
        Both(
            ('decoder_vocab_size',),
            write=lambda ours: {'decoder_vocab_size': ours['model.vocab_size']},
        ),
    ),
    buffers=(*BART.buffers, r'embed_positions\.weight$'),
)
