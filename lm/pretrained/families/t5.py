"""T5 (Raffel et al. 2020), T5 1.1, Flan-T5, mT5, UL2."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lm.config import ModelConfig
from lm.layers.mlp import activation
from lm.pretrained.family import (
    TENSORS,
    Both,
    Family,
    Key,
    Only,
    Tensor,
    always,
    attention,
    norm,
    table,
    unsupported,
)

# `feed_forward_proj` -> ours. T5's gated form has the tanh form of GELU.
_ACTIVATIONS = {'relu': 'relu', 'gated-gelu': 'geglu', 'gated-silu': 'swiglu', 'silu': 'silu'}


def _read_activation(theirs: Mapping[str, Any]) -> dict[str, Any]:
    name = theirs.get('feed_forward_proj', 'relu')
    if name not in _ACTIVATIONS:
        raise unsupported('feed_forward_proj', name, _ACTIVATIONS)
    return {'model.activation': _ACTIVATIONS[name]}


def _write_activation(ours: Mapping[str, Any]) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    name = names.get(ours['model.activation'], ours['model.activation'])
    function = name.removeprefix('gated-')
    return {
        'feed_forward_proj': name,
        'is_gated_act': name != function,
        'dense_act_fn': 'gelu_new' if name == 'gated-gelu' else function,
    }


def _read_output(theirs: Mapping[str, Any], may_scale: bool = True) -> dict[str, Any]:
    # The first T5 scales vectors down before the output matrix, which is the embedding's. 1.1 does not, and
    # has a matrix of its own: `transformers` 4 said so by `tie_word_embeddings`, and 5 does not say.
    scaled = theirs.get('scale_decoder_outputs', theirs.get('tie_word_embeddings') is not False)
    return {
        'model.tie_embeddings': 'lm_head.weight' not in theirs[TENSORS],
        'model.logit_scale': theirs['d_model'] ** -0.5 if scaled and may_scale else 1.0,
    }


def _write_output(ours: Mapping[str, Any]) -> dict[str, Any]:
    scaled = ours['model.logit_scale'] != 1
    return {'tie_word_embeddings': scaled, 'scale_decoder_outputs': scaled}


_OUTPUT = Both(('tie_word_embeddings', 'scale_decoder_outputs'), _read_output, _write_output)
# mT5 never scales.
_UNSCALED = Both(
    _OUTPUT.names,
    lambda theirs: _read_output(theirs, may_scale=False),
    lambda ours: {'tie_word_embeddings': ours['model.tie_embeddings']},
)


def _gated(model: ModelConfig) -> bool:
    return activation(model).gated


def _matrix(theirs: str, ours: str, where: Callable[[ModelConfig], bool] = bool) -> Tensor:
    return Tensor(f'{theirs}.weight', f'{ours}/kernel', 'O I -> I O', where)


def _stack(side: str, mlp: int) -> tuple[Tensor, ...]:
    """Returns the tensors of an encoder, or of a decoder, whose MLP is its sublayer of that number."""
    layer, ours = f'{side}.block.{{n}}.layer', f'{side}/layers'
    return (
        # The first layer has it for all.
        Tensor(
            f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
            f'{side}/relative/bias',
            'B H -> B H',
        ),
        *norm(f'{layer}.0.layer_norm', f'{ours}/attention_norm'),
        *attention(f'{layer}.0.SelfAttention', 'q k v o', f'{ours}/attention'),
        *norm(f'{layer}.{mlp}.layer_norm', f'{ours}/mlp_norm'),
        _matrix(
            f'{layer}.{mlp}.DenseReluDense.wi', f'{ours}/mlp/up', lambda model: not _gated(model)
        ),
        _matrix(f'{layer}.{mlp}.DenseReluDense.wi_1', f'{ours}/mlp/up', _gated),
        _matrix(f'{layer}.{mlp}.DenseReluDense.wi_0', f'{ours}/mlp/gate', _gated),
        _matrix(f'{layer}.{mlp}.DenseReluDense.wo', f'{ours}/mlp/down'),
        *norm(f'{side}.final_layer_norm', f'{side}/final_norm'),
    )


T5 = Family(
    name='t5',
    classes={'T5ForConditionalGeneration': ''},
    config=(
        always(
            {
                'model.architecture': 'encoder_decoder',
                'model.position': 'relative',
                'model.norm': 'rmsnorm',
                'model.attention_scale': 1.0,
                'objective.name': 'seq2seq',
            }
        ),
        Key('vocab_size', 'model.vocab_size'),
        Key('n_positions', 'data.length', 512),
        Key('d_model', 'model.embed_dim'),
        Key('d_kv', 'model.head_dim'),
        Key('d_ff', 'model.mlp_dim'),
        Key('num_heads', 'model.num_heads'),
        Both(
            ('num_layers', 'num_decoder_layers'),
            lambda theirs: {
                'model.encoder_layers': theirs['num_layers'],
                'model.num_layers': theirs.get('num_decoder_layers') or theirs['num_layers'],
            },
            lambda ours: {
                'num_layers': ours['model.encoder_layers'] or ours['model.num_layers'],
                'num_decoder_layers': ours['model.num_layers'],
            },
        ),
        Key('relative_attention_num_buckets', 'model.relative_buckets', 32),
        Key('relative_attention_max_distance', 'model.relative_distance', 128),
        Key('layer_norm_epsilon', 'model.norm_epsilon', 1e-6),
        Key('dropout_rate', 'model.dropout', 0.1),
        Both(
            ('feed_forward_proj', 'is_gated_act', 'dense_act_fn'),
            _read_activation,
            _write_activation,
        ),
        _OUTPUT,
        Only(is_encoder_decoder=True, is_decoder=False),
    ),
    tensors=(
        table('shared.weight', 'embed'),
        *_stack('encoder', 1),
        *_stack('decoder', 2),
        *norm('decoder.block.{n}.layer.1.layer_norm', 'decoder/layers/cross_attention_norm'),
        *attention(
            'decoder.block.{n}.layer.1.EncDecAttention', 'q k v o', 'decoder/layers/cross_attention'
        ),
        Tensor('lm_head.weight', 'decoder/head/kernel', 'V D -> D V'),
    ),
    tied={
        'encoder.embed_tokens.weight': 'shared.weight',
        'decoder.embed_tokens.weight': 'shared.weight',
        'lm_head.weight': 'shared.weight',
    },
    buffers=(r'^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$',),
)

MT5 = dataclasses.replace(
    T5,
    name='mt5',
    classes={'MT5ForConditionalGeneration': ''},
    config=tuple(_UNSCALED if entry is _OUTPUT else entry for entry in T5.config),
)
