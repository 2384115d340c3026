"""A family of published models: how its config and its tensors correspond to ours, in both directions.

A family is data. Its `config` is a sequence of entries, each of which knows some keys of a Hugging Face
`config.json` and some of ours; its `tensors` say how arrays are laid out there and here, in the notation of
einops. Reading and writing go through the same entries, so that neither can know what the other does not.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lm.attention import parse_pattern
from lm.config import ModelConfig
from lm.errors import InputError, nearest
from lm.layers.attention import head_sizes
from lm.layers.mlp import mlp_dim
from lm.layers.norm import NORMS

_NEEDED = object()

# What a config is read with besides its keys: the names of the tensors, without `Family.prefix` or with it.
TENSORS = ' tensors'


class Entry(Protocol):
    """Some keys of a family's config, and of ours."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their keys."""

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns our keys, such as `model.embed_dim`, of theirs; raises InputError if it cannot."""

    def write(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Returns their keys of ours. What does not come back from `read` does not fit the family."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key there, one here.

    Attributes:
        theirs: its name there.
        ours: its name here.
        default: what it is there where it is left out.
        values: their values and ours; None: they are the same.
        otherwise: what stands here for null there.
    """

    theirs: str
    ours: str
    default: Any = _NEEDED
    values: Mapping[Any, Any] | None = None
    otherwise: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.theirs,)

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        value = theirs.get(self.theirs, self.default)
        if value is _NEEDED:
            raise InputError(f"config.json lacks '{self.theirs}'.")
        if value is None:
            return {self.ours: self.otherwise}
        if self.values is not None:
            if value not in self.values:
                raise unsupported(self.theirs, value, self.values)
            value = self.values[value]
        return {self.ours: value}

    def write(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        value = ours[self.ours]
        if self.values is None:
            return {self.theirs: value}
        for theirs, own in self.values.items():
            if own == value:
                return {self.theirs: theirs}
        known = ', '.join(dict.fromkeys(map(repr, self.values.values())))
        raise InputError(f'config.{self.ours} = {value!r} is not one of {known}.')


@dataclasses.dataclass(frozen=True)
class Only:
    """A key there of which one value is supported, which is also its default: `Only(is_decoder=False)`."""

    keys: Mapping[str, Any]

    def __init__(self, **keys: Any) -> None:
        object.__setattr__(self, 'keys', keys)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.keys)

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in self.keys.items():
            if theirs.get(name, value) != value:
                raise unsupported(name, theirs[name], (value,))
        return {}

    def write(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.keys)


@dataclasses.dataclass(frozen=True)
class Both:
    """What takes a function: several keys that hang together.

    Attributes:
        names: theirs.
        read: theirs -> ours.
        write: ours -> theirs.
    """

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda theirs: {}
    write: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda ours: {}


def always(ours: Mapping[str, Any]) -> Both:
    """Returns keys of ours that all of the family have: `always({'model.norm': 'layernorm'})`."""
    return Both((), lambda theirs: dict(ours))


def ignored(*names: str) -> Both:
    """Returns keys there that say nothing about the function that a model computes."""
    return Both(names)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array there, and the parameters here that are in it.

    >>> Tensor('h.{n}.attn.c_attn.weight', (QUERY, KEY, VALUE), 'D (three H K) -> three D H K')

    Attributes:
        theirs: its name, with `{n}` for the layer where there are layers.
        ours: the path of a parameter, or of several of one shape, which are stacked on a first axis.
            `layers/` stands for the layers, whatever they are grouped into.
        axes: from theirs to ours, as for `einops.rearrange`.
        where: of which models, where two names stand for one path.
        optional: it is zero where it is left out.
    """

    theirs: str
    ours: str | tuple[str, ...]
    axes: str
    where: Callable[[ModelConfig], bool] = lambda model: True
    optional: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of ours."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that one architecture of `transformers` covers.

    Attributes:
        name: its `model_type`.
        classes: of `transformers`, with how a path begins that a model of each has: an export names the
            first that has one.
        config: the entries of its config.
        tensors: those that our parameters are made of. Of a model without biases, say, some are not there.
        prefix: what a model without its head leaves out of the names of tensors.
        tied: tensors that repeat another one, by name; left out, or checked to be equal.
        buffers: expressions of names of tensors that hold no parameter.
    """

    name: str
    classes: Mapping[str, str]
    config: tuple[Entry, ...]
    tensors: tuple[Tensor, ...]
    prefix: str = ''
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: tuple[str, ...] = ()


def unsupported(name: str, value: Any, known: Any) -> InputError:
    """Returns what is wrong with a value there."""
    choices = ', '.join(json.dumps(choice) for choice in known)
    near = nearest(value, known) if isinstance(value, str) and len(known) > 1 else ''
    hint = near if near.startswith(' Did') else f' Supported: {choices}.'
    return InputError(f'config.json: {name} = {json.dumps(value)} is not supported.{hint}')


# Names of functions there, and ours.
ACTIVATIONS = {
    'gelu_new': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
    'gelu': 'gelu_exact',
    'relu': 'relu',
    'silu': 'silu',
}
# Keys of every config.json that say nothing about the function.
COMMON = (
    *('architectures', 'model_type', 'transformers_version', 'torch_dtype', 'dtype', 'auto_map'),
    *('_name_or_path', '_attn_implementation', '_attn_implementation_autoset', 'use_cache'),
    *('bos_token_id', 'eos_token_id', 'pad_token_id', 'sep_token_id', 'decoder_start_token_id'),
    *('forced_bos_token_id', 'forced_eos_token_id', 'bad_words_ids', 'suppress_tokens'),
    *('initializer_range', 'initializer_factor', 'init_std', 'id2label', 'label2id', 'num_labels'),
    *('problem_type', 'finetuning_task', 'task_specific_params', 'tokenizer_class', 'prefix'),
    *('output_attentions', 'output_hidden_states', 'output_past', 'return_dict', 'torchscript'),
    *('max_length', 'min_length', 'num_beams', 'length_penalty', 'early_stopping', 'do_sample'),
    *('no_repeat_ngram_size', 'temperature', 'top_k', 'top_p', 'repetition_penalty'),
    *('classifier_dropout', 'chunk_size_feed_forward', 'gradient_checkpointing'),
    *('normalize_embedding', 'static_position_embeddings'),
    *('predict_special_tokens', 'directionality', 'pooler_fc_size', 'pooler_num_attention_heads'),
    *('pooler_num_fc_layers', 'pooler_size_per_head', 'pooler_type', 'extra_pos_embeddings'),
    *('transformers.js_config', 'pruned_heads', 'do_blenderbot_90_layernorm', 'typical_p'),
    *('num_return_sequences', 'num_beam_groups', 'diversity_penalty', 'output_scores', 'author'),
    *('return_dict_in_generate', 'encoder_no_repeat_ngram_size', 'remove_invalid_values'),
    *('cross_attention_hidden_size', 'tie_encoder_decoder', 'exponential_decay_length_penalty'),
)


def linear(theirs: str, ours: str) -> tuple[Tensor, ...]:
    """Returns the tensors of a `torch.nn.Linear` and a `Dense` of one axis."""
    return (
        Tensor(f'{theirs}.weight', f'{ours}/kernel', 'O I -> I O'),
        Tensor(f'{theirs}.bias', f'{ours}/bias', 'O -> O'),
    )


def attention(theirs: str, names: str, ours: str) -> tuple[Tensor, ...]:
    """Returns the tensors of attention that is four of `torch.nn.Linear`.

    Args:
        theirs: how their names begin.
        names: what they go on with, of queries, keys, values and the output: `q_proj k_proj v_proj o_proj`.
        ours: our path.
    """
    *inputs, out = names.split()
    found = []
    for name, part in zip(inputs, ('query', 'key', 'value'), strict=True):
        found += [
            Tensor(f'{theirs}.{name}.weight', f'{ours}/{part}/kernel', '(H K) D -> D H K'),
            Tensor(f'{theirs}.{name}.bias', f'{ours}/{part}/bias', '(H K) -> H K'),
        ]
    return (*found, *from_heads(f'{theirs}.{out}', f'{ours}/out'))


def from_heads(theirs: str, ours: str) -> tuple[Tensor, ...]:
    """Returns the tensors of a `torch.nn.Linear` from heads to D."""
    return (
        Tensor(f'{theirs}.weight', f'{ours}/kernel', 'D (H K) -> H K D'),
        Tensor(f'{theirs}.bias', f'{ours}/bias', 'D -> D'),
    )


def fused(theirs: str, ours: str, weight: str, bias: str) -> tuple[Tensor, ...]:
    """Returns the tensors of one product that makes queries, keys and values, by the axes of each."""
    parts = [f'{ours}/{part}' for part in ('query', 'key', 'value')]
    return (
        Tensor(f'{theirs}.weight', tuple(f'{part}/kernel' for part in parts), weight),
        Tensor(f'{theirs}.bias', tuple(f'{part}/bias' for part in parts), bias),
    )


def norm(theirs: str, ours: str) -> tuple[Tensor, ...]:
    """Returns the tensors of a norm."""
    return (
        Tensor(f'{theirs}.weight', f'{ours}/scale', 'D -> D'),
        Tensor(f'{theirs}.bias', f'{ours}/bias', 'D -> D'),
    )


def vector(theirs: str, ours: str) -> Tensor:
    """Returns a tensor of one axis."""
    return Tensor(theirs, ours, 'D -> D')


def table(theirs: str, ours: str) -> Tensor:
    """Returns the tensor of an embedding."""
    return Tensor(theirs, f'{ours}/embedding', 'V D -> V D')


def resolved(model: ModelConfig) -> dict[str, Any]:
    """Returns what a model computes: its keys without those of speed, and with defaults written out.

    Two configs that differ here are of different functions of their parameters.
    """
    found = dataclasses.asdict(model)
    for name in ('scan_layers', 'remat', 'dtype', 'attention_implementation', 'dropout'):
        del found[name]
    _, groups, width = head_sizes(model)
    found |= {
        'num_kv_heads': groups,
        'head_dim': width,
        'mlp_dim': mlp_dim(model),
        'embedding_dim': model.embedding_dim or model.embed_dim,
        'encoder_layers': model.encoder_layers or model.num_layers,
        'attention_scale': model.attention_scale or width**-0.5,
        'qkv_bias': model.qkv_bias or model.bias,
        'attention': _pattern(model.attention),
        'encoder_attention': _pattern(model.encoder_attention),
    }
    if model.norm in NORMS:
        found['norm_epsilon'] = model.norm_epsilon or NORMS[model.norm].epsilon
    unused = {
        'rotary_': model.position != 'rotary',
        'relative_': model.position != 'relative',
        'position_offset': model.position != 'learned',
        'encoder_': model.architecture != 'encoder_decoder',
        'rotary_factor': model.rotary_scaling == 'none',
        'rotary_original': model.rotary_scaling not in ('llama3', 'yarn'),
    }
    return {
        name: value
        for name, value in found.items()
        if not any(name.startswith(start) for start, off in unused.items() if off)
    }


def _pattern(masks: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a pattern in its one form, of which a single kind is told once."""
    kinds = tuple(str(kind) for kind in parse_pattern(masks))
    return kinds[:1] if len(set(kinds)) == 1 else kinds
