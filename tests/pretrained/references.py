"""Small models of `transformers` with random weights: a case or more for each family."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason="the reference lane needs pip install '.[reference]'")
transformers = pytest.importorskip('transformers')
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

V = 120
_IDS = {'vocab_size': V, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
_SIZES = {
    'hidden_size': 32,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'intermediate_size': 56,
    'max_position_embeddings': 128,
}
_GROUPED = _IDS | _SIZES | {'num_key_value_heads': 2}
_LLAMA3 = {
    'rope_type': 'llama3',
    'rope_theta': 500_000.0,
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 16,
}
_T5 = _IDS | {
    'd_model': 32,
    'd_kv': 16,
    'd_ff': 56,
    'num_layers': 3,
    'num_decoder_layers': 2,
    'num_heads': 4,
    'decoder_start_token_id': 0,
}
_BART = _IDS | {
    'd_model': 32,
    'encoder_layers': 2,
    'decoder_layers': 3,
    'encoder_attention_heads': 4,
    'decoder_attention_heads': 4,
    'encoder_ffn_dim': 56,
    'decoder_ffn_dim': 56,
    'max_position_embeddings': 128,
    'decoder_start_token_id': 2,
    'forced_eos_token_id': None,
}
_GPT2 = _IDS | {'n_positions': 128, 'n_embd': 32, 'n_layer': 3, 'n_head': 4}
_OPT = {key: value for key, value in (_IDS | _SIZES).items() if key != 'intermediate_size'}
_OPT |= {'ffn_dim': 56, 'word_embed_proj_dim': 32}
_DISTIL = {'dim': 32, 'n_layers': 3, 'n_heads': 4, 'hidden_dim': 56, 'max_position_embeddings': 128}
_XLNET = _IDS | {'d_model': 32, 'n_layer': 3, 'n_head': 4, 'd_inner': 56}
_LM, _SEQ2SEQ = 'ForCausalLM', 'ForConditionalGeneration'

# Name -> class and options: those that published models of the family have.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    'gpt2': ('GPT2LMHeadModel', _GPT2),
    'gpt2 untied, wide': (
        'GPT2LMHeadModel',
        _GPT2 | {'tie_word_embeddings': False, 'n_inner': 48, 'activation_function': 'gelu'},
    ),
    'llama 2': (f'Llama{_LM}', _IDS | _SIZES),
    'llama 3': (f'Llama{_LM}', _GROUPED | {'rope_parameters': _LLAMA3, 'rms_norm_eps': 1e-5}),
    'llama 3.2': (
        f'Llama{_LM}',
        _GROUPED | {'rope_parameters': _LLAMA3, 'tie_word_embeddings': True, 'head_dim': 16},
    ),
    'llama, linear scaling': (
        f'Llama{_LM}',
        _GROUPED
        | {'rope_parameters': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 10_000.0}},
    ),
    'mistral': (f'Mistral{_LM}', _GROUPED | {'sliding_window': 8}),
    'mistral without a window': (f'Mistral{_LM}', _GROUPED | {'sliding_window': None}),
    'qwen2': (f'Qwen2{_LM}', _GROUPED),
    'qwen2 with windows': (
        f'Qwen2{_LM}',
        _GROUPED | {'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 2},
    ),
    'qwen3': (f'Qwen3{_LM}', _GROUPED | {'head_dim': 16, 'tie_word_embeddings': True}),
    'gemma 2': (
        f'Gemma2{_LM}',
        _GROUPED | {'head_dim': 16, 'sliding_window': 8, 'query_pre_attn_scalar': 24},
    ),
    'gpt-neox': (f'GPTNeoX{_LM}', _IDS | _SIZES),
    'pythia, in sequence': (f'GPTNeoX{_LM}', _IDS | _SIZES | {'use_parallel_residual': False}),
    'opt': (f'OPT{_LM}', _OPT),
    'opt, norms last': (f'OPT{_LM}', _OPT | {'do_layer_norm_before': False}),
    'opt 350m': (f'OPT{_LM}', _OPT | {'do_layer_norm_before': False, 'word_embed_proj_dim': 16}),
    'opt, narrow and norms first': (f'OPT{_LM}', _OPT | {'word_embed_proj_dim': 16}),
    'bert': ('BertForPreTraining', _IDS | _SIZES),
    'bert, masked only': ('BertForMaskedLM', _IDS | _SIZES),
    'big bird': (
        'BigBirdForPreTraining',
        _IDS | _SIZES | {'hidden_act': 'gelu_new', 'attention_type': 'original_full'},
    ),
    'roberta': (
        'RobertaForMaskedLM',
        _IDS | _SIZES | {'pad_token_id': 1, 'bos_token_id': 0, 'type_vocab_size': 1},
    ),
    'distilbert': ('DistilBertForMaskedLM', {**_IDS, **_DISTIL}),
    'electra': ('ElectraForPreTraining', _IDS | _SIZES | {'embedding_size': 16}),
    'electra, as wide as its embeddings': (
        'ElectraForPreTraining',
        _IDS | _SIZES | {'embedding_size': 32},
    ),
    'electra, the generator': ('ElectraForMaskedLM', _IDS | _SIZES | {'embedding_size': 16}),
    'xlnet': ('XLNetLMHeadModel', _XLNET),
    'xlnet, gelu of the code': ('XLNetLMHeadModel', _XLNET | {'ff_activation': 'gelu_new'}),
    'albert': ('AlbertForPreTraining', _IDS | _SIZES | {'embedding_size': 16}),
    't5': (f'T5{_SEQ2SEQ}', _T5),
    't5 1.1, flan-t5': (
        f'T5{_SEQ2SEQ}',
        _T5 | {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
    ),
    'ul2': (
        f'T5{_SEQ2SEQ}',
        _T5 | {'feed_forward_proj': 'gated-silu', 'tie_word_embeddings': False},
    ),
    'mt5': (f'MT5{_SEQ2SEQ}', _T5 | {'feed_forward_proj': 'gated-gelu'}),
    'bart': (f'Bart{_SEQ2SEQ}', _BART),
    'bart, scaled': (f'Bart{_SEQ2SEQ}', _BART | {'scale_embedding': True}),
    'marian': (
        'MarianMTModel',
        _BART
        | {
            'decoder_vocab_size': V,
            'scale_embedding': True,
            'activation_function': 'swish',
            'pad_token_id': V - 1,
            'decoder_start_token_id': V - 1,
        },
    ),
}
# Which are a decoder, an encoder, both.
DECODERS = [
    name
    for name, (kind, _) in CASES.items()
    if kind.endswith((_LM, 'LMHeadModel')) and not kind.startswith('XLNet')
]
BOTH = [name for name, (kind, _) in CASES.items() if kind.endswith((_SEQ2SEQ, 'MTModel'))]
ENCODERS = [name for name in CASES if name not in (*DECODERS, *BOTH)]


@functools.cache
def reference(name: str) -> Any:
    """Returns the model of a case: weights are drawn wide, so that what is wrong shows."""
    kind, options = CASES[name]
    made = getattr(transformers, kind)
    torch.manual_seed(len(name))
    model = made(made.config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # Marian's waves are not.
                parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if 'final_logits_bias' in buffer_name:
                buffer.add_(torch.randn_like(buffer))
    return model


def write(name: str, folder: Path, **options: Any) -> Any:
    """Writes a case with a tokenizer into a folder, and returns the model."""
    model = reference(name)
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of V ids: special ones, and words."""
    specials = ('<pad>', '<s>', '</s>', '<unk>', '<mask>')
    vocab = {token: i for i, token in enumerate(specials)}
    vocab |= {f'w{i}': i for i in range(len(vocab), V)}
    added = [
        {'id': i, 'content': token, 'special': True, 'normalized': False}
        | dict.fromkeys(('single_word', 'lstrip', 'rstrip'), False)
        for i, token in enumerate(specials)
    ]
    fields = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': added,
        'normalizer': None,
        'pre_tokenizer': {'type': 'WhitespaceSplit'},
        'post_processor': None,
        'decoder': None,
        'model': {'type': 'WordLevel', 'vocab': vocab, 'unk_token': '<unk>'},
    }
    (folder / 'tokenizer.json').write_text(json.dumps(fields))
    names = {f'{role}_token': f'<{role}>' for role in ('pad', 'unk', 'mask')}
    names |= {'bos_token': '<s>', 'eos_token': '</s>', 'tokenizer_class': 'PreTrainedTokenizerFast'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(names))


def tokens(rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns random ids, and which of them there are: rows end earlier and earlier."""
    ids = np.random.default_rng(seed).integers(5, V - 5, (rows, length))
    there = np.arange(length) < length - 5 * np.arange(rows)[:, None]
    return ids, there.astype(np.int32)
