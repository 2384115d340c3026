"""Llama and those that differ from it by a setting or two: Mistral, Qwen 2 and 3, Gemma 2."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from lm.errors import InputError
from lm.pretrained.family import (
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
    vector,
)

_LAYER = 'model.layers.{n}.'
# Constants of Llama 3's scaling, and of YaRN's, that are part of ours.
_SCALINGS: dict[str, tuple[str, dict[str, Any]]] = {
    'default': ('none', {}),
    'linear': ('linear', {}),
    'llama3': ('llama3', {'low_freq_factor': 1.0, 'high_freq_factor': 4.0}),
    'yarn': ('yarn', {'beta_fast': 32, 'beta_slow': 1}),
}


def _read_rotary(theirs: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(theirs.get('rope_scaling') or {}) | dict(theirs.get('rope_parameters') or {})
    base = given.pop('rope_theta', theirs.get('rope_theta', 10_000.0))
    kind = given.pop('rope_type', given.pop('type', 'default'))
    given.pop('type', None)
    if kind not in _SCALINGS:
        raise unsupported('rope_type', kind, _SCALINGS)
    name, constants = _SCALINGS[kind]
    found = {
        'model.rotary_base': float(base),
        'model.rotary_scaling': name,
        'model.rotary_factor': float(given.pop('factor', 1.0)),
        'model.rotary_original_length': 0,
    }
    longest = theirs.get('max_position_embeddings', 0)
    original = given.pop('original_max_position_embeddings', longest)
    if name in ('llama3', 'yarn'):
        found['model.rotary_original_length'] = int(original)
    for key, value in given.items():
        if value is not None and value != constants.get(key):
            raise unsupported(f'rope_parameters.{key}', value, (constants.get(key),))
    return found


def _write_rotary(ours: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {name: (kind, constants) for kind, (name, constants) in _SCALINGS.items()}
    kind, constants = kinds.get(ours['model.rotary_scaling'], ('default', {}))
    found = {'rope_type': kind, 'rope_theta': ours['model.rotary_base']}
    if kind != 'default':
        found |= {'factor': ours['model.rotary_factor'], **constants}
    if ours['model.rotary_original_length']:
        found['original_max_position_embeddings'] = ours['model.rotary_original_length']
    return {'rope_parameters': found}


ROTARY = Both(('rope_theta', 'rope_scaling', 'rope_parameters'), _read_rotary, _write_rotary)


def _of_qwen(theirs: Mapping[str, Any], layers: int) -> list[str]:
    """Layers from `max_window_layers` on have a window, where it is used at all."""
    first = theirs.get('max_window_layers', 28) if theirs.get('use_sliding_window') else layers
    return ['full_attention' if n < first else 'sliding_attention' for n in range(layers)]


def _of_gemma(theirs: Mapping[str, Any], layers: int) -> list[str]:
    """Every other layer has a window, the first among them."""
    return ['full_attention' if n % 2 else 'sliding_attention' for n in range(layers)]


def _layer_types(default: Callable[[Mapping[str, Any], int], list[str]]) -> Both:
    """Which layers see a window only; `sliding_window` is how many tokens, the own one among them."""

    def read(theirs: Mapping[str, Any]) -> dict[str, Any]:
        window, layers = theirs.get('sliding_window', 4096), theirs['num_hidden_layers']
        kinds = theirs.get('layer_types') or default(theirs, layers)
        if len(kinds) != layers:
            raise InputError(
                f'config.json: layer_types has {len(kinds)} layers, and num_hidden_layers is {layers}.'
            )
        masks = {'full_attention': 'causal', 'sliding_attention': _sliding(window)}
        for kind in kinds:
            if kind not in masks or (kind == 'sliding_attention' and not window):
                raise unsupported('layer_types', kind, masks)
        return {'model.attention': _repeating([masks[kind] for kind in kinds])}

    names = ('sliding_window', 'use_sliding_window', 'max_window_layers', 'layer_types')
    return Both((*names, 'sliding_window_size'), read, _write_layers)


def _repeating(masks: list[str]) -> tuple[str, ...]:
    """Returns the shortest pattern that the layers go through."""
    sizes = (n for n in range(1, len(masks) + 1) if len(masks) % n == 0)
    return next(tuple(masks[:n]) for n in sizes if masks[:n] * (len(masks) // n) == masks)


def _sliding(window: int | None) -> str:
    return f'causal & window({window})'


def _window_of(pattern: tuple[str, ...]) -> int | None:
    """Returns the one window of a pattern, tokens."""
    found = [re.fullmatch(r'causal & window\((\d+)\)', mask) for mask in pattern]
    sizes = {int(match[1]) for match in found if match}
    return sizes.pop() if len(sizes) == 1 else None


def _write_layers(ours: Mapping[str, Any]) -> dict[str, Any]:
    pattern = ours['model.attention']
    window = _window_of(pattern)
    kinds = {'causal': 'full_attention', _sliding(window): 'sliding_attention'}
    repeats = ours['model.num_layers'] // len(pattern)
    return {
        'sliding_window': window,
        'use_sliding_window': window is not None,
        'layer_types': [kinds.get(mask, mask) for mask in pattern] * repeats,
    }


def _read_window(theirs: Mapping[str, Any]) -> dict[str, Any]:
    window = theirs.get('sliding_window', 4096)
    return {'model.attention': (_sliding(window) if window else 'causal',)}


EVERY_LAYER = Both(
    ('sliding_window',),
    _read_window,
    lambda ours: {'sliding_window': _window_of(ours['model.attention'])},
)

_CONFIG: tuple[Entry, ...] = (
    always(
        {
            'model.architecture': 'decoder',
            'model.position': 'rotary',
            'model.norm': 'rmsnorm',
            'model.bias': False,
        }
    ),
    Key('vocab_size', 'model.vocab_size'),
    Key('max_position_embeddings', 'data.length', 2048),
    Key('hidden_size', 'model.embed_dim'),
    Key('intermediate_size', 'model.mlp_dim'),
    Key('num_hidden_layers', 'model.num_layers'),
    Key('num_attention_heads', 'model.num_heads'),
    Key('num_key_value_heads', 'model.num_kv_heads', None, otherwise=0),
    Key('head_dim', 'model.head_dim', None, otherwise=0),
    Key('rms_norm_eps', 'model.norm_epsilon', 1e-6),
    Key('tie_word_embeddings', 'model.tie_embeddings', False),
    ROTARY,
    ignored('attention_dropout', 'pretraining_tp', 'is_llama_config', 'cache_implementation'),
)
_SWIGLU = Key('hidden_act', 'model.activation', 'silu', {'silu': 'swiglu', 'swish': 'swiglu'})


def _groups(default: int) -> Key:
    return Key('num_key_value_heads', 'model.num_kv_heads', default, otherwise=0)


LLAMA = Family(
    name='llama',
    classes={'LlamaForCausalLM': ''},
    config=(*_CONFIG, _SWIGLU, Only(attention_bias=False, mlp_bias=False)),
    prefix='model.',
    tensors=(
        table('model.embed_tokens.weight', 'embed'),
        *norm(f'{_LAYER}input_layernorm', 'layers/attention_norm'),
        *attention(f'{_LAYER}self_attn', 'q_proj k_proj v_proj o_proj', 'layers/attention'),
        vector(f'{_LAYER}self_attn.q_norm.weight', 'layers/attention/query_norm/scale'),
        vector(f'{_LAYER}self_attn.k_norm.weight', 'layers/attention/key_norm/scale'),
        *norm(f'{_LAYER}post_attention_layernorm', 'layers/mlp_norm'),
        *linear(f'{_LAYER}mlp.gate_proj', 'layers/mlp/gate'),
        *linear(f'{_LAYER}mlp.up_proj', 'layers/mlp/up'),
        *linear(f'{_LAYER}mlp.down_proj', 'layers/mlp/down'),
        *norm('model.norm', 'final_norm'),
        Tensor('lm_head.weight', 'head/kernel', 'V D -> D V'),
    ),
    tied={'lm_head.weight': 'model.embed_tokens.weight'},
    buffers=(r'rotary_emb\.inv_freq$',),
)

MISTRAL = dataclasses.replace(
    LLAMA,
    name='mistral',
    classes={'MistralForCausalLM': ''},
    config=(*_CONFIG, _SWIGLU, EVERY_LAYER, _groups(8)),
)

QWEN2 = dataclasses.replace(
    LLAMA,
    name='qwen2',
    classes={'Qwen2ForCausalLM': ''},
    config=(
        *_CONFIG,
        _SWIGLU,
        _layer_types(_of_qwen),
        always({'model.qkv_bias': True}),
        _groups(32),
    ),
)

QWEN3 = dataclasses.replace(
    LLAMA,
    name='qwen3',
    classes={'Qwen3ForCausalLM': ''},
    config=(
        *_CONFIG,
        _SWIGLU,
        _layer_types(_of_qwen),
        always({'model.qk_norm': True}),
        _groups(32),
        Key('head_dim', 'model.head_dim', 128),
        Only(attention_bias=False),
    ),
)


def _root(name: str, ours: str, power: float) -> Both:
    """A scale of ours that is a power of a number there; null is none."""
    return Both(
        (name,),
        lambda theirs: {ours: theirs[name] ** power if theirs.get(name) else 0.0},
        lambda ours_: {name: round(ours_[ours] ** (1 / power)) if ours_[ours] else None},
    )


GEMMA2 = dataclasses.replace(
    LLAMA,
    name='gemma2',
    classes={'Gemma2ForCausalLM': ''},
    config=(
        *_CONFIG,
        always({'model.norm': 'rmsnorm_1p', 'model.norm_placement': 'both'}),
        Key(
            'hidden_activation',
            'model.activation',
            'gelu_pytorch_tanh',
            {'gelu_pytorch_tanh': 'geglu'},
        ),
        Key('tie_word_embeddings', 'model.tie_embeddings', True),
        Key('attn_logit_softcapping', 'model.attention_softcap', 50.0, otherwise=0.0),
        Key('final_logit_softcapping', 'model.logit_softcap', 30.0, otherwise=0.0),
        _root('query_pre_attn_scalar', 'model.attention_scale', -0.5),
        Both((), lambda theirs: {'model.embed_scale': theirs['hidden_size'] ** 0.5}),
        _layer_types(_of_gemma),
        _groups(4),
        Key('head_dim', 'model.head_dim', 256),
        Only(attention_bias=False, use_bidirectional_attention=None),
        ignored('hidden_act'),
    ),
    tensors=(
        *(tensor for tensor in LLAMA.tensors if 'post_attention_layernorm' not in tensor.theirs),
        *norm(f'{_LAYER}post_attention_layernorm', 'layers/attention_output_norm'),
        *norm(f'{_LAYER}pre_feedforward_layernorm', 'layers/mlp_norm'),
        *norm(f'{_LAYER}post_feedforward_layernorm', 'layers/mlp_output_norm'),
    ),
)
