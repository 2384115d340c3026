"""GPT-NeoX (Black et al. 2022) and Pythia."""

from collections.abc import Mapping
from typing import Any

from lm.pretrained.families.llama import ROTARY
from lm.pretrained.family import (
    ACTIVATIONS,
    Both,
    Family,
    Key,
    Only,
    Tensor,
    always,
    from_heads,
    fused,
    ignored,
    linear,
    norm,
    table,
)

_LAYER = 'gpt_neox.layers.{n}'


def _read_rotary(theirs: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(theirs.get('rope_parameters') or {})
    given.setdefault('rope_theta', theirs.get('rotary_emb_base', 10_000))
    fraction = given.pop('partial_rotary_factor', theirs.get('rotary_pct', 0.25))
    found = ROTARY.read({**theirs, 'rope_parameters': given})
    return found | {'model.rotary_fraction': fraction}


def _write_rotary(ours: Mapping[str, Any]) -> dict[str, Any]:
    found = ROTARY.write(ours)['rope_parameters']
    return {
        'rope_parameters': found | {'partial_rotary_factor': ours['model.rotary_fraction']},
        'rotary_pct': ours['model.rotary_fraction'],
        'rotary_emb_base': ours['model.rotary_base'],
    }


GPT_NEOX = Family(
    name='gpt_neox',
    classes={'GPTNeoXForCausalLM': ''},
    config=(
        always(
            {
                'model.architecture': 'decoder',
                'model.position': 'rotary',
                'model.norm': 'layernorm',
                'model.bias': True,
            }
        ),
        Key('vocab_size', 'model.vocab_size'),
        Key('max_position_embeddings', 'data.length', 2048),
        Key('hidden_size', 'model.embed_dim'),
        Key('num_hidden_layers', 'model.num_layers'),
        Key('num_attention_heads', 'model.num_heads'),
        Key('intermediate_size', 'model.mlp_dim'),
        Key('hidden_act', 'model.activation', 'gelu', ACTIVATIONS | {'gelu_fast': 'gelu'}),
        Key('layer_norm_eps', 'model.norm_epsilon', 1e-5),
        Key('hidden_dropout', 'model.dropout', 0.0),
        Key('use_parallel_residual', 'model.parallel_residual', True),
        Key('tie_word_embeddings', 'model.tie_embeddings', False),
        Both(
            ('rope_parameters', 'rope_scaling', 'rope_theta', 'rotary_pct', 'rotary_emb_base'),
            _read_rotary,
            _write_rotary,
        ),
        Only(attention_bias=True, is_decoder=False),
        ignored('attention_dropout'),
    ),
    prefix='gpt_neox.',
    tensors=(
        table('gpt_neox.embed_in.weight', 'embed'),
        *norm(f'{_LAYER}.input_layernorm', 'layers/attention_norm'),
        *fused(
            f'{_LAYER}.attention.query_key_value',
            'layers/attention',
            '(H three K) D -> three D H K',
            '(H three K) -> three H K',
        ),
        *from_heads(f'{_LAYER}.attention.dense', 'layers/attention/out'),
        *norm(f'{_LAYER}.post_attention_layernorm', 'layers/mlp_norm'),
        *linear(f'{_LAYER}.mlp.dense_h_to_4h', 'layers/mlp/up'),
        *linear(f'{_LAYER}.mlp.dense_4h_to_h', 'layers/mlp/down'),
        *norm('gpt_neox.final_layer_norm', 'final_norm'),
        Tensor('embed_out.weight', 'head/kernel', 'V D -> D V'),
    ),
    tied={'embed_out.weight': 'gpt_neox.embed_in.weight'},
    buffers=(r'attention\.(masked_)?bias$', r'rotary_emb\.inv_freq$'),
)
