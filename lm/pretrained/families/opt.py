"""OPT (Zhang et al. 2022)."""

from collections.abc import Mapping
from typing import Any

from lm.pretrained.family import (
    ACTIVATIONS,
    Both,
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
)

_LAYER = 'model.decoder.layers.{n}'


def _read_width(theirs: Mapping[str, Any]) -> dict[str, Any]:
    # The model of 350 M parameters has narrower embeddings than layers.
    width = theirs.get('word_embed_proj_dim', theirs['hidden_size'])
    return {'model.embedding_dim': 0 if width == theirs['hidden_size'] else width}


OPT = Family(
    name='opt',
    classes={'OPTForCausalLM': ''},
    config=(
        always(
            {
                'model.architecture': 'decoder',
                'model.position': 'learned',
                'model.position_offset': 2,
                'model.norm': 'layernorm',
                'model.norm_epsilon': 1e-5,
                'model.bias': True,
            }
        ),
        Key('vocab_size', 'model.vocab_size'),
        Key('max_position_embeddings', 'data.length', 2048),
        Key('hidden_size', 'model.embed_dim'),
        Key('num_hidden_layers', 'model.num_layers'),
        Key('num_attention_heads', 'model.num_heads'),
        Key('ffn_dim', 'model.mlp_dim'),
        Key('activation_function', 'model.activation', 'relu', ACTIVATIONS),
        Key('dropout', 'model.dropout', 0.1),
        Key('do_layer_norm_before', 'model.norm_placement', True, {True: 'pre', False: 'post'}),
        Key('tie_word_embeddings', 'model.tie_embeddings', True),
        Both(
            ('word_embed_proj_dim',),
            _read_width,
            lambda ours: {'word_embed_proj_dim': ours['model.embedding_dim']},
        ),
        Only(enable_bias=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False),
        ignored('attention_dropout', 'activation_dropout', 'layerdrop'),
    ),
    prefix='model.',
    tensors=(
        table('model.decoder.embed_tokens.weight', 'embed'),
        table('model.decoder.embed_positions.weight', 'position'),
        *linear('model.decoder.project_in', 'embed_projection'),
        *linear('model.decoder.project_out', 'output_projection'),
        *attention(f'{_LAYER}.self_attn', 'q_proj k_proj v_proj out_proj', 'layers/attention'),
        *norm(f'{_LAYER}.self_attn_layer_norm', 'layers/attention_norm'),
        *linear(f'{_LAYER}.fc1', 'layers/mlp/up'),
        *linear(f'{_LAYER}.fc2', 'layers/mlp/down'),
        *norm(f'{_LAYER}.final_layer_norm', 'layers/mlp_norm'),
        *norm('model.decoder.final_layer_norm', 'final_norm'),
        Tensor('lm_head.weight', 'head/kernel', 'V D -> D V'),
    ),
    tied={'lm_head.weight': 'model.decoder.embed_tokens.weight'},
)
