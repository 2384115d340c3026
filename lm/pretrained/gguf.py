"""A model as GGUF, for llama.cpp and what is built on it (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The file is written by llama.cpp's own package, `gguf`, from a model in Hugging Face's form: its table names
the tensors, and an entry of `FORMS` says what of a family's config llama.cpp calls how, and which tensors
it has in another order. What llama.cpp does otherwise than the model is refused, and named; but for three
things: a unigram tokenizer's characters beyond its pieces, which are unknown there and bytes here; NFC,
which llama.cpp leaves to the text; and GPT-NeoX's GELU, which is there the one by tanh.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from lm import vocabulary
from lm.config import Config
from lm.errors import InputError, lookup
from lm.layers.attention import head_sizes
from lm.layers.position import rotary_frequencies, rotary_width
from lm.pretrained.tokenizers import BYTES, PROBES, SPECIALS, added_names
from lm.pretrained_tokenizer import HuggingFace, byte_table, steps_of
from lm.tokenizer import Bytes, SentencePiece, Tokenizer

try:
    import gguf
except ImportError:
    raise InputError("--format=gguf needs llama.cpp's package: pip install gguf") from None

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]
Tensors = Iterator[tuple[str, np.ndarray]]
_KINDS = gguf.TokenType
_GELUS = ('gelu_new', 'gelu_pytorch_tanh')  # By tanh.
_BYTE = re.compile('<0x[0-9A-F]{2}>')
# How texts are cut before byte-level BPE, and llama.cpp's name of it: of the models that it is named after.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_PATTERNS = {_WORDS % r'\p{N}{1,3}': 'llama-bpe', _WORDS % r'\p{N}': 'qwen2'}
_QUANTIZED = {
    np.dtype(np.float32): gguf.GGMLQuantizationType.F32,
    np.dtype(np.float16): gguf.GGMLQuantizationType.F16,
    np.dtype(ml_dtypes.bfloat16): gguf.GGMLQuantizationType.BF16,
}
_FILES = {
    np.dtype(np.float32): gguf.LlamaFileType.ALL_F32,
    np.dtype(np.float16): gguf.LlamaFileType.MOSTLY_F16,
    np.dtype(ml_dtypes.bfloat16): gguf.LlamaFileType.MOSTLY_BF16,
}


@dataclasses.dataclass(frozen=True)
class Form:
    """What llama.cpp makes of a family.

    Attributes:
        name: of its architecture there.
        arch: the same, for the table of tensors' names.
        describe: `(writer, config)` writes what of the config it wants to know.
        turned: `(name of a tensor, tensor, config) -> tensor` as it has it.
        obstacle: `config -> why it would compute something else`, or ''.
    """

    name: str
    arch: Any
    describe: Callable[[Any, Mapping[str, Any]], None]
    turned: Callable[[str, np.ndarray, Mapping[str, Any]], np.ndarray]
    obstacle: Callable[[Mapping[str, Any]], str]


def _same(name: str, tensor: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    return tensor


def _gpt2(writer: Any, c: Mapping[str, Any]) -> None:
    writer.add_context_length(c['n_positions'])
    writer.add_embedding_length(c['n_embd'])
    writer.add_block_count(c['n_layer'])
    writer.add_feed_forward_length(c.get('n_inner') or 4 * c['n_embd'])
    writer.add_head_count(c['n_head'])
    writer.add_layer_norm_eps(c['layer_norm_epsilon'])


def _gpt2_turned(name: str, tensor: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """PyTorch has GPT-2's products as `[in, out]`, which no other family has."""
    parts = ('c_attn.weight', 'c_proj.weight', 'c_fc.weight')
    return np.ascontiguousarray(tensor.T) if name.endswith(parts) else tensor


def _gpt2_obstacle(c: Mapping[str, Any]) -> str:
    return '' if c['activation_function'] in _GELUS else f'activation {c["activation_function"]}'


def _llama(writer: Any, c: Mapping[str, Any]) -> None:
    writer.add_context_length(c['max_position_embeddings'])
    writer.add_embedding_length(c['hidden_size'])
    writer.add_block_count(c['num_hidden_layers'])
    writer.add_feed_forward_length(c['intermediate_size'])
    writer.add_head_count(c['num_attention_heads'])
    writer.add_head_count_kv(c['num_key_value_heads'])
    writer.add_layer_norm_rms_eps(c['rms_norm_eps'])
    writer.add_key_length(_head_dim(c))
    writer.add_value_length(_head_dim(c))
    writer.add_rope_dimension_count(_head_dim(c))
    rope = c['rope_parameters']
    writer.add_rope_freq_base(rope['rope_theta'])
    if rope['rope_type'] in ('linear', 'yarn'):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope['rope_type']))
        writer.add_rope_scaling_factor(rope['factor'])
    if rope['rope_type'] == 'yarn':
        writer.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])


def _head_dim(c: Mapping[str, Any]) -> int:
    return c.get('head_dim') or c['hidden_size'] // c['num_attention_heads']


def _llama_turned(name: str, tensor: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Its rotations are of neighbours, `(x0, x1), (x2, x3)`; ours and PyTorch's of halves."""
    heads = {'q_proj': 'num_attention_heads', 'k_proj': 'num_key_value_heads'}
    for part, key in heads.items():
        if f'self_attn.{part}.' in name:
            split = tensor.reshape(config[key], 2, -1, *tensor.shape[1:])
            return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(tensor.shape)
    return tensor


def _without(c: Mapping[str, Any], *scalings: str) -> str:
    """Returns what stands against a model without windows, of one of these kinds of rope scaling."""
    kind = c['rope_parameters']['rope_type']
    if kind not in ('default', *scalings):
        return f'rope scaling {kind}'
    windows = [kind for kind in c.get('layer_types') or () if kind != 'full_attention']
    return 'windows' if windows or c.get('sliding_window') else ''


def _llama_obstacle(c: Mapping[str, Any]) -> str:
    return _without(c, 'linear', 'yarn', 'llama3')


def _qwen_obstacle(c: Mapping[str, Any]) -> str:
    return _without(c, 'linear', 'yarn')


def _neox(writer: Any, c: Mapping[str, Any]) -> None:
    writer.add_context_length(c['max_position_embeddings'])
    writer.add_embedding_length(c['hidden_size'])
    writer.add_block_count(c['num_hidden_layers'])
    writer.add_feed_forward_length(c['intermediate_size'])
    writer.add_head_count(c['num_attention_heads'])
    writer.add_layer_norm_eps(c['layer_norm_eps'])
    writer.add_parallel_residual(c['use_parallel_residual'])
    rope = c['rope_parameters']
    writer.add_rope_freq_base(rope['rope_theta'])
    writer.add_rope_dimension_count(int(rope['partial_rotary_factor'] * _head_dim(c)))


def _neox_turned(name: str, tensor: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """PyTorch has queries, keys and values of a head together, llama.cpp those of all heads."""
    if 'query_key_value' not in name:
        return tensor
    split = tensor.reshape(config['num_attention_heads'], 3, -1, *tensor.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(tensor.shape)


def _neox_obstacle(c: Mapping[str, Any]) -> str:
    known = (*_GELUS, 'gelu', 'gelu_fast')
    other = '' if c['hidden_act'] in known else f'activation {c["hidden_act"]}'
    return other or _without(c)


def _gemma2(writer: Any, c: Mapping[str, Any]) -> None:
    _llama(writer, c)
    writer.add_attn_logit_softcapping(c['attn_logit_softcapping'])
    writer.add_final_logit_softcapping(c['final_logit_softcapping'])
    writer.add_sliding_window(c['sliding_window'])


def _gemma2_turned(name: str, tensor: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """PyTorch's norms multiply by 1 + weight."""
    return tensor + 1 if name.endswith('norm.weight') else tensor


def _gemma2_obstacle(c: Mapping[str, Any]) -> str:
    wanted = ['sliding_attention' if i % 2 == 0 else 'full_attention' for i in range(1000)]
    kinds = c.get('layer_types') or wanted[: c['num_hidden_layers']]
    # It knows the 27B model, whose scale is another, by its 46 layers.
    whole = c['num_hidden_layers'] == 46
    wanted_scale = c['hidden_size'] // c['num_attention_heads'] if whole else _head_dim(c)
    if c['query_pre_attn_scalar'] != wanted_scale:
        return f'a scale of attention for heads of {c["query_pre_attn_scalar"]}'
    if not c['attn_logit_softcapping'] or not c['final_logit_softcapping']:
        return 'no soft cap'
    if c['rope_parameters']['rope_type'] != 'default':
        return f'rope scaling {c["rope_parameters"]["rope_type"]}'
    return '' if list(kinds) == wanted[: len(kinds)] else 'windows in other than every other layer'


# By `model_type`.
FORMS: dict[str, Form] = {
    'gpt2': Form('gpt2', gguf.MODEL_ARCH.GPT2, _gpt2, _gpt2_turned, _gpt2_obstacle),
    'llama': Form('llama', gguf.MODEL_ARCH.LLAMA, _llama, _llama_turned, _llama_obstacle),
    'mistral': Form('llama', gguf.MODEL_ARCH.LLAMA, _llama, _llama_turned, _llama_obstacle),
    'qwen2': Form('qwen2', gguf.MODEL_ARCH.QWEN2, _llama, _same, _qwen_obstacle),
    'qwen3': Form('qwen3', gguf.MODEL_ARCH.QWEN3, _llama, _same, _qwen_obstacle),
    'gpt_neox': Form('gptneox', gguf.MODEL_ARCH.GPTNEOX, _neox, _neox_turned, _neox_obstacle),
    'gemma2': Form('gemma2', gguf.MODEL_ARCH.GEMMA2, _gemma2, _gemma2_turned, _gemma2_obstacle),
}


def write(
    path: Path,
    family: str,
    theirs: Mapping[str, Any],
    shapes: Shapes,
    tensors: Tensors,
    tokenizer: Tokenizer,
    config: Config,
) -> None:
    """Writes a file, one tensor at a time. Norms and biases are float32 whatever the others are.

    Args:
        path: of the file.
        family: `model_type`.
        theirs: config.json.
        shapes: of the tensors, and their dtype.
        tensors: by the names of that family, in that order.
        tokenizer: the model's.
        config: the run's.

    Raises:
        InputError: llama.cpp has not what the model is made of, or no such tokenizer.
    """
    form = lookup(FORMS, family, '--format=gguf: the family')
    if obstacle := form.obstacle(theirs):
        raise InputError(
            f"--format=gguf: llama.cpp's '{form.name}' has not what this model has: {obstacle}."
        )
    layers = theirs.get('num_hidden_layers') or theirs['n_layer']
    names = gguf.get_tensor_name_map(form.arch, layers)
    writer = gguf.GGUFWriter(path, form.name)
    writer.add_name(path.stem)
    form.describe(writer, theirs)
    rows = next(
        shape[0]
        for name, (shape, _) in shapes.items()
        if re.search('embed_tokens|wte|embed_in', name)
    )
    _add_tokenizer(writer, tokenizer, config, rows)
    divisors = (
        _divisors(config)
        if theirs.get('rope_parameters', {}).get('rope_type') == 'llama3'
        else None
    )
    if divisors is not None:
        writer.add_tensor_info('rope_freqs.weight', divisors.shape, divisors.dtype, divisors.nbytes)
    kinds = {}
    for name, (shape, dtype) in shapes.items():
        known = names.get_name(name, ('.weight', '.bias'))
        if known is None:
            raise InputError(f"--format=gguf: llama.cpp's '{form.name}' has no tensor '{name}'.")
        kinds[name] = _QUANTIZED[np.dtype(np.float32) if len(shape) == 1 else dtype]
        turned = form.turned(name, np.broadcast_to(np.float32(0), shape), theirs)
        form_of = gguf.quant_shape_to_byte_shape(turned.shape, kinds[name])
        writer.add_tensor_info(
            known, form_of, np.dtype(np.uint8), int(np.prod(form_of)), raw_dtype=kinds[name]
        )
    writer.add_file_type(_FILES[next(dtype for _, dtype in shapes.values())])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for name, tensor in tensors:
        turned = form.turned(name, np.asarray(tensor, np.float32), theirs)
        found = gguf.quants.quantize(np.ascontiguousarray(turned), kinds[name])
        writer.write_tensor_data(found.view(np.uint8))
    writer.close()


def _divisors(config: Config) -> np.ndarray:
    """Returns by what llama.cpp divides the frequencies of rotary positions, float32 `[R / 2]`."""
    model = config.model
    width = rotary_width(model, head_sizes(model)[2])
    plain = dataclasses.replace(model, rotary_scaling='none')
    found = rotary_frequencies(plain, width) / rotary_frequencies(model, width)
    return found.astype(np.float32)


# ------------------------------------------------------------------------------------------- tokenizers


@dataclasses.dataclass
class _Vocabulary:
    """What llama.cpp is told of a tokenizer: tokens, scores and kinds by id, merges of BPE, how texts are
    cut before, by its name of that, and whether a space is put before them."""

    model: str
    tokens: list[str]
    scores: list[float] | None
    kinds: list[int]
    merges: Sequence[str] = ()
    space_first: bool = False
    cuts: str = 'default'


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, config: Config, rows: int) -> None:
    if isinstance(tokenizer, SentencePiece):
        found = _sentencepiece(tokenizer)
    elif isinstance(tokenizer, Bytes):
        special = [_KINDS.CONTROL] * 3 + [_KINDS.UNKNOWN]
        found = _bytes(BYTES, [*special, *[_KINDS.BYTE] * (len(BYTES) - len(SPECIALS))])
    elif isinstance(tokenizer, HuggingFace):
        found = _huggingface(tokenizer)
    else:
        raise InputError(f"--format=gguf: llama.cpp has no tokenizers of kind '{tokenizer.kind}'.")
    _complete(found, vocabulary.build(tokenizer, config.tokenizer), tokenizer, rows)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.cuts)
    writer.add_token_list(found.tokens)
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    writer.add_token_types(found.kinds)
    if found.merges:
        writer.add_token_merges(found.merges)
    own = tokenizer.specials
    writer.add_bos_token_id(own.bos)
    writer.add_eos_token_id(own.eos)
    writer.add_pad_token_id(own.pad)
    if own.unk >= 0:
        writer.add_unk_token_id(own.unk)
    writer.add_add_bos_token(config.generate.bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(found.space_first)


def _complete(
    found: _Vocabulary, ids: vocabulary.Vocabulary, tokenizer: Tokenizer, rows: int
) -> None:
    """Adds the ids after a tokenizer's own, and those of which a model has vectors only."""
    names = added_names(ids)
    for index in range(len(found.tokens), max(rows, ids.total)):
        kind = _KINDS.CONTROL if index in names else _KINDS.UNUSED
        found.tokens.append(names.get(index, f'[unused {index}]'))
        found.kinds.append(kind)
        if found.scores is not None:
            found.scores.append(-1e4)
    if len(found.tokens) > rows:
        raise InputError('--format=gguf: the tokenizer has more ids than the model has vectors.')


def _sentencepiece(tokenizer: SentencePiece) -> _Vocabulary:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    tokens = [piece.piece for piece in proto.pieces]
    kinds = [int(piece.type) for piece in proto.pieces]  # llama.cpp has them from there.
    spaced = processor.normalize('a').startswith('▁')
    for text in PROBES:
        if processor.normalize(text) != ('▁' * spaced + text).replace(' ', '▁'):
            raise InputError(
                '--format=gguf: the tokenizer changes texts in a way that llama.cpp is not told.'
            )
    model = 't5' if tokenizer.kind == 'unigram' else 'llama'
    if model == 'llama' and kinds.count(_KINDS.BYTE) != 256:
        raise InputError(
            "--format=gguf: llama.cpp's tokenizer of this kind falls back to bytes, and this one has none: "
            'config.tokenizer.byte_fallback = True has them.'
        )
    scores = [piece.score for piece in proto.pieces]
    return _Vocabulary(model, tokens, scores, kinds, space_first=spaced)


def _bytes(names: Sequence[str], kinds: Sequence[int]) -> _Vocabulary:
    """Returns a vocabulary of bytes; for llama.cpp it is one of BPE that never merges.

    Args:
        names: of the ids; `<0x41>` stands for a byte.
        kinds: what llama.cpp takes them for.
    """
    shown = {byte: character for character, byte in byte_table().items()}
    found, normal = list(names), list(kinds)
    for index, name in enumerate(names):
        if _BYTE.fullmatch(name):
            found[index], normal[index] = shown[int(name[3:5], 16)], _KINDS.NORMAL
    # It asks for one merge at least.
    merge = f'{shown[0]} {shown[0]}{shown[0]}'
    return _Vocabulary('gpt2', found, None, normal, [merge], cuts='gpt-2')


def _huggingface(tokenizer: HuggingFace) -> _Vocabulary:
    fields = json.loads(tokenizer.serialized())['tokenizer']
    model = fields['model']
    steps = {part: [*steps_of(fields.get(part))] for part in ('normalizer', 'pre_tokenizer')}
    cut = [step['type'] for step in steps['pre_tokenizer']]
    by_bytes = 'ByteLevel' in cut
    if model.get('type') != 'BPE' or not (by_bytes or model.get('byte_fallback')):
        raise InputError(
            '--format=gguf: of tokenizer.json files llama.cpp reads BPE of bytes, or with bytes as the '
            'last resort.'
        )
    names = {index: token for token, index in tokenizer.ids.items()}
    added = {token['id']: token for token in fields.get('added_tokens') or ()}
    kinds, tokens = [], []
    for index in range(max(names) + 1):
        name = names.get(index, f'[unused {index}]')
        kind = _KINDS.NORMAL
        if index not in names:
            kind = _KINDS.UNUSED
        elif index == tokenizer.specials.unk:
            kind = _KINDS.UNKNOWN
        elif index in added:
            kind = _KINDS.CONTROL if added[index]['special'] else _KINDS.USER_DEFINED
        elif not by_bytes and _BYTE.fullmatch(name):
            kind = _KINDS.BYTE
        tokens.append(name)
        kinds.append(kind)
    merges = [pair if isinstance(pair, str) else ' '.join(pair) for pair in model['merges']]
    if by_bytes:
        return _Vocabulary('gpt2', tokens, None, kinds, merges, cuts=_cuts(steps, model))
    if kinds.count(_KINDS.BYTE) != 256:
        raise InputError(
            "--format=gguf: of the bytes, the tokenizer's last resort, some are missing."
        )
    if not merges and not any(steps.values()):
        return _bytes(tokens, kinds)
    known = {'Prepend', 'Replace', 'Metaspace', 'Split'}
    spaces = json.dumps(steps, ensure_ascii=False)
    if not {step['type'] for part in steps.values() for step in part} <= known or '▁' not in spaces:
        raise InputError(
            '--format=gguf: the tokenizer changes texts in a way that llama.cpp is not told.'
        )
    rank = {pair.replace(' ', ''): i for i, pair in reversed(list(enumerate(merges)))}
    scores = [float(-rank.get(token, len(merges))) for token in tokens]
    first = 'Prepend' in spaces or ('Metaspace' in spaces and '"never"' not in spaces)
    return _Vocabulary('llama', tokens, scores, kinds, space_first=first)


def _cuts(steps: Mapping[str, list[dict[str, Any]]], model: Mapping[str, Any]) -> str:
    """Returns llama.cpp's name of how a text is cut before byte-level BPE.

    Raises:
        InputError: it knows no such way.
    """
    found = ''
    *before, last = steps['pre_tokenizer']
    if last['type'] == 'ByteLevel' and not last.get('add_prefix_space', True):
        if not before and last.get('use_regex', True):
            found = 'gpt-2'
        elif [step['type'] for step in before] == ['Split'] and not last.get('use_regex', True):
            pattern = (before[0].get('pattern') or {}).get('Regex')
            found = _PATTERNS.get(pattern, '') if before[0].get('behavior') == 'Isolated' else ''
    # Of a whole word that is a token no merges are asked, by Llama 3's.
    if bool(model.get('ignore_merges')) != (found == 'llama-bpe'):
        found = ''
    if not found or not {step['type'] for step in steps['normalizer']} <= {'NFC'}:
        raise InputError(
            "--format=gguf: how the tokenizer changes or cuts texts is none of llama.cpp's ways that are "
            f'known here: gpt-2, {", ".join(_PATTERNS.values())}.'
        )
    return found
