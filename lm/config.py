"""Turns a ConfigDict into frozen dataclasses, and says clearly what is wrong with it.

ml_collections on the outside, where people override and log; typed and immutable on the inside, where
code reads. The defaults stand once, in `configs/base.py`; nothing here has any.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lm import corpora
from lm.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where text comes from, and how it becomes batches."""

    train: str
    corpora: Mapping[str, Any]
    rates: str
    rates_temperature: float
    rates_limit: int
    valid: str
    test: str
    prefix: str
    document: str
    length: int
    source_length: int
    batch_size: int
    packing: bool
    random_crop: bool
    code_dropout: float
    augment: tuple[str, ...]
    augment_embedding: str
    tfds_dir: str
    cache_dir: str
    workers: int
    prefetch: int


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens."""

    kind: str
    path: str
    vocab_size: int
    byte_fallback: bool
    train_bytes: int
    symbols: tuple[str, ...]
    mask: bool
    sentinels: int
    codes: tuple[str, ...]
    begin_sources: bool


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is learnt from text."""

    name: str
    rate: float
    span: float
    max_span: int
    unit: str
    max_predictions: int
    random_rate: float
    keep_rate: float
    pairs: str
    noise: tuple[str, ...]
    denoisers: tuple[str, ...]
    partial: int
    bidirectional: bool
    generator_size: float
    discriminator_weight: float
    classes: tuple[str, ...]
    similarity_temperature: float


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The Transformer."""

    architecture: str
    num_layers: int
    encoder_layers: int
    embed_dim: int
    embedding_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    experts: int
    experts_per_token: int
    expert_every: int
    router: str
    expert_dispatch: str
    capacity_factor: float
    balance_loss: float
    router_z_loss: float
    activation: str
    norm: str
    norm_epsilon: float
    norm_placement: str
    parallel_residual: bool
    position: str
    position_offset: int
    rotary_base: float
    rotary_fraction: float
    rotary_scaling: str
    rotary_factor: float
    rotary_original_length: int
    relative_buckets: int
    relative_distance: int
    token_types: int
    embed_scale: float
    embed_norm: bool
    attention: tuple[str, ...]
    encoder_attention: tuple[str, ...]
    attention_implementation: str
    qk_norm: bool
    attention_scale: float
    attention_softcap: float
    logit_scale: float
    logit_softcap: float
    logit_bias: bool
    bias: bool
    qkv_bias: bool
    tie_embeddings: bool
    dropout: float
    vocab_size: int
    vocab_multiple: int
    share_layers: bool
    scan_layers: bool
    pipeline_microbatches: int
    pipeline_repeats: int
    remat: str
    dtype: str
    matmul: str


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss, in nats a token."""

    label_smoothing: float
    z_loss: float
    max_logits_mb: int


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """From a gradient to an update."""

    name: str
    learning_rate: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    decay_paths: str
    options: Mapping[str, Any]
    clip_norm: float
    accumulation: int
    ema_decay: float
    loss_scale: float
    loss_scale_steps: int


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over steps."""

    kind: str
    warmup_steps: int
    final_scale: float
    power: float
    decay_fraction: float


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes, and how slices are joined."""

    data: int
    fsdp: int
    tensor: int
    sequence: int
    expert: int
    stage: int
    slices: int
    across: str


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int
    log_every: int
    eval_every: int
    max_bad_steps: int


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Perplexity."""

    batch_size: int
    stride: int
    batches: int
    checkpoint: str
    beams: int
    length_penalty: float
    candidates: int
    bleu_tokenizer: str
    lowercase: bool


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    every: int
    keep: int
    keep_best: int


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Samples."""

    prompts: tuple[str, ...]
    samples: int
    bos: bool
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    codes: tuple[str, ...]
    guidance: float


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where metrics go, besides metrics.jsonl."""

    tensorboard: bool
    wandb: str
    profile: tuple[int, ...]
    profile_all_hosts: bool


@dataclasses.dataclass(frozen=True)
class MultitaskConfig:
    """How several tasks share the steps."""

    mode: str
    rates: str
    temperature: float
    limit: int
    every: int
    asymmetry: float


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int
    data: DataConfig
    tokenizer: TokenizerConfig
    objective: ObjectiveConfig
    tasks: Mapping[str, Any]
    multitask: MultitaskConfig
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    mesh: MeshConfig
    train: TrainConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    generate: GenerateConfig
    log: LogConfig


# What an entry of `tasks` may hold. The sections are of the keys that differ for the task.
_SECTIONS = ('data', 'objective', 'generate')
TASK_KEYS = ('weight', 'final_weight', *_SECTIONS)
# Keys of `data` that all tasks share.
_SHARED = frozenset({'tfds_dir', 'cache_dir', 'workers', 'prefetch'})


def tasks(config: Config) -> dict[str, Config]:
    """Returns the config of each task: all the same, but for what `config.tasks` says.

    Without tasks, that is the config itself, by the name ''.
    """
    if not config.tasks:
        return {'': config}
    found = {}
    for name, task in sorted(config.tasks.items()):
        sections = {
            section: _parse(
                type(getattr(config, section)),
                {**to_dict(getattr(config, section)), **task.get(section, {})},
                f'tasks.{name}.{section}.',
            )
            for section in _SECTIONS
        }
        found[name] = dataclasses.replace(config, tasks=types.MappingProxyType({}), **sections)
    return found


def tasks_as_dicts(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns what `tasks` does, of a config as nested dicts, such as a report's."""
    return {
        name: {**config, **{key: {**config[key], **task.get(key, {})} for key in _SECTIONS}}
        for name, task in sorted(config['tasks'].items())
    } or {'': config}


def task_weights(config: Config) -> dict[str, tuple[float, float]]:
    """Returns the weight of each task at the first step, and at the last: another if they are scheduled."""
    found = {}
    for name, task in sorted(config.tasks.items()):
        weight = task.get('weight', 1.0)
        last = task.get('final_weight', weight) if config.multitask.rates == 'scheduled' else weight
        found[name] = float(weight), float(last)
    return found


def _check_tasks(config: Config) -> None:
    for name, task in sorted(config.tasks.items()):
        place = f'config.tasks.{name}'
        if not str(name).isidentifier() or not isinstance(task, Mapping):
            raise InputError(
                f'{place} must have a name of letters, digits and _, and hold some of: '
                f'{", ".join(TASK_KEYS)}.'
            )
        for key, value in task.items():
            if key not in TASK_KEYS:
                raise InputError(f'{place}.{key} is not a key of a task.{nearest(key, TASK_KEYS)}')
            section = key in _SECTIONS
            if section != isinstance(value, Mapping) or not (
                section or type(value) in (int, float) and value >= 0
            ):
                wanted = 'a dict of the keys that differ' if section else 'a number, at least 0'
                raise InputError(f'{place}.{key} = {value!r} must be {wanted}.')
        for key in _SHARED.intersection(task.get('data', {})):
            raise InputError(f'{place}.data.{key}: tasks share it; set config.data.{key}.')
    for name, part in tasks(config).items():
        for key in ('length', 'source_length'):
            own, most = (getattr(data, key) or data.length for data in (part.data, config.data))
            if own > most:
                raise InputError(
                    f'config.tasks.{name}.data.{key} = {own} is more than config.data.{key} = {most}, the '
                    'longest that the model is made for.'
                )
    weights = task_weights(config)
    if weights and not all(sum(w[end] for w in weights.values()) > 0 for end in (0, 1)):
        raise InputError('config.tasks: all weights are 0; at least one task must be learnt.')


def _check_corpora(config: Config) -> None:
    for task, part in tasks(config).items():
        data, place = part.data, f'config.tasks.{task}.data' if task else 'config.data'
        found = corpora.parse(data.corpora, f'{place}.corpora')
        if found and data.train:
            raise InputError(
                f"{place}.train = '{data.train}' and {place}.corpora both say what is trained on: set "
                f"{place}.train = ''."
            )
        if data.rates != 'fixed' and not found:
            raise InputError(
                f"{place}.rates = '{data.rates}' is of {place}.corpora, and none is named."
            )
        for name, corpus in found.items():
            if corpus.final_weight != corpus.weight and data.rates != 'scheduled':
                raise InputError(
                    f"{place}.corpora.{name}.final_weight is of {place}.rates = 'scheduled', and that is "
                    f"'{data.rates}'."
                )
        counted = data.rates == 'scheduled' or any(corpus.epochs for corpus in found.values())
        if task and found and counted and config.multitask.mode == 'alternating':
            raise InputError(
                f'{place}.corpora: a schedule and epochs are counted over the steps, of which an '
                "alternating task has only some: set config.multitask.mode = 'joint'."
            )


def _check_profile(config: Config) -> None:
    steps, place = config.log.profile, f'config.log.profile = {config.log.profile}'
    if not steps:
        return
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
        raise InputError(
            f'{place} must be () or the first and the last step to trace, such as (10, 13).'
        )
    if steps[0] > config.train.steps:
        raise InputError(f'{place} begins after the last step, {config.train.steps}.')


# Smallest and largest value of the keys that have one; None is no limit.
_RANGES = {
    r'data\.(length|batch_size|prefetch)|model\.(num_layers|embed_dim|num_heads|vocab_multiple)'
    r'|model\.pipeline_repeats'
    r'|tokenizer\.(vocab_size|train_bytes)|optimizer\.accumulation|train\.(steps|log_every|max_bad_steps)'
    r'|checkpoint\.keep|loss\.max_logits_mb|generate\.(samples|max_tokens)'
    r'|optimizer\.loss_scale\w*'
    r'|model\.(experts_per_token|expert_every)'
    r'|objective\.(span|max_span|partial)|multitask\.(temperature|every)|data\.rates_temperature': (
        1,
        None,
    ),
    r'model\.relative_(buckets|distance)': (4, None),
    r'objective\.generator_size': (0, 1),
    r'data\.source_length|model\.(encoder_layers|embedding_dim|token_types)'
    r'|objective\.discriminator_weight': (0, None),
    r'model\.(num_kv_heads|head_dim|mlp_dim|rotary_original_length|attention_softcap|logit_softcap)'
    r'|model\.(experts|balance_loss|router_z_loss)'
    r'|model\.(vocab_size|norm_epsilon|position_offset|attention_scale|pipeline_microbatches)'
    r'|data\.(workers|rates_limit)|loss\.z_loss|optimizer\.(learning_rate|eps|weight_decay|clip_norm)'
    r'|schedule\.(warmup_steps|final_scale|power)|train\.eval_every'
    r'|eval\.(batch_size|stride|batches|beams|length_penalty|candidates)'
    r'|checkpoint\.(every|keep_best)|generate\.(temperature|top_k|guidance)'
    r'|tokenizer\.sentinels|objective\.max_predictions|multitask\.(limit|asymmetry)': (0, None),
    r'model\.dropout|loss\.label_smoothing|optimizer\.(b1|b2|ema_decay)|schedule\.decay_fraction'
    r'|generate\.(top_p|min_p)|data\.code_dropout|objective\.\w*rate': (0, 1),
    r'model\.(rotary_(base|factor)|capacity_factor)|objective\.similarity_temperature': (
        1e-6,
        None,
    ),
}

# Keys that a second start in the same workdir may change: they move the work, not the result.
RESUMABLE = re.compile(
    r'mesh\.|log\.|checkpoint\.|(tasks\.\w+\.)?generate\.|data\.(cache_dir|workers|prefetch|tfds_dir)$'
    r'|model\.(scan_layers|remat|attention_implementation|pipeline_\w+)$|loss\.max_logits_mb$'
    r'|train\.(log_every|eval_every|max_bad_steps)$|eval\.'
)


def put(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets keys of a config, such as `model.num_layers`; raises InputError if there is no such key."""
    known = dict(flatten(config.to_dict()))
    for key, value in values.items():
        if key not in known and not key.startswith('optimizer.options.'):
            raise InputError(f"'config.{key}' is not a config key.{nearest(key, known)}")
        section, _, leaf = key.rpartition('.')
        with config.ignore_type():
            (config[section] if section else config)[leaf] = value


def load(path: str | Path) -> ConfigDict:
    """Returns `get_config()` of a config file.

    Args:
        path: a file such as `configs/quickstart.py`, or just the name of one of the project's
            configs, such as `quickstart`.

    Raises:
        InputError: there is no such file, or it defines no `get_config`.
    """
    path = file = Path(path)
    by_name = not path.is_file() and path.suffix == '' and len(path.parts) == 1
    if by_name:
        file = Path(__file__).parent.parent / 'configs' / f'{path}.py'
    if not file.is_file():
        siblings = [p for p in sorted(file.parent.glob('*.py')) if p.stem != '__init__']
        names = [p.stem if by_name else str(p) for p in siblings]
        where = f' in {file.parent}' if by_name else ''
        raise InputError(f"config file '{path}' does not exist{where}.{nearest(str(path), names)}")
    spec = importlib.util.spec_from_file_location(f'lm_config_{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
        raise InputError(f"config file '{path}' defines no function get_config().")
    return module.get_config()


def defaults() -> dict[str, Any]:
    """Returns `configs/base.py` as nested plain dicts."""
    return to_dict(parse(load('base')))


def parse(config: ConfigDict) -> Config:
    """Returns the frozen form of a config.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    parsed = typed(Config, values)
    _check_tasks(parsed)
    _check_corpora(parsed)
    _check_profile(parsed)
    return parsed


def typed(cls: type, values: Mapping[str, Any], base: str = 'configs/base.py') -> Any:
    """Returns a dataclass of nested dicts, with all its keys and no other, each of its type.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    return _parse(cls, values, '', base)


def _parse(cls: type, values: Mapping[str, Any], prefix: str, base: str = 'configs/base.py') -> Any:
    fields = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise InputError(f'config.{prefix}{key} is not a config key.{nearest(key, fields)}')
    for key in fields:
        if key not in values:
            raise InputError(f'config.{prefix}{key} is missing: start from {base}.')
    return cls(**{k: _value(kind, values[k], f'{prefix}{k}', base) for k, kind in fields.items()})


_TUPLES = {tuple[str, ...]: str, tuple[int, ...]: int}


def _value(kind: Any, value: Any, name: str, base: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _parse(kind, value, f'{name}.', base)
    if kind in _TUPLES:
        if isinstance(value, str) and kind == tuple[str, ...]:
            value = (value,)
        if isinstance(value, list | tuple) and all(type(v) is _TUPLES[kind] for v in value):
            return tuple(value)
    elif typing.get_origin(kind) is not None:
        if isinstance(value, Mapping):
            return types.MappingProxyType(dict(value))
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
        return _in_range(value, name)
    elif type(value) is kind:
        return _in_range(value, name)
    wanted = getattr(kind, '__name__', None) or str(kind)
    wanted = f'tuple of {_TUPLES[kind].__name__}' if kind in _TUPLES else wanted
    raise InputError(
        f'config.{name} = {value!r} is of type {type(value).__name__}; it must be {wanted}.'
    )


def _in_range(value: Any, name: str) -> Any:
    if value != value:
        raise InputError(f'config.{name} = {value} is not a number.')
    key = re.sub(r'^tasks\.\w+\.', '', name)
    for pattern, (low, high) in _RANGES.items():
        if re.fullmatch(pattern, key):
            if low is not None and value < low:
                raise InputError(f'config.{name} = {value} is too small; the least is {low}.')
            if high is not None and value > high:
                raise InputError(f'config.{name} = {value} is too large; the most is {high}.')
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Returns nested plain dicts, as written to `config.json`."""
    return {
        field.name: to_dict(value)
        if dataclasses.is_dataclass(value := getattr(config, field.name))
        else dict(value)
        if isinstance(value, Mapping)
        else value
        for field in dataclasses.fields(config)
    }


def flatten(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields `('model.num_layers', 6)` for each leaf of nested dicts."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', list(value) if isinstance(value, tuple) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns `{key: (old value, new value)}` of the leaves that differ."""
    old, new = dict(flatten(old)), dict(flatten(new))
    return {
        key: (old.get(key), new.get(key))
        for key in [*old, *(k for k in new if k not in old)]
        if old.get(key) != new.get(key)
    }


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, as hexadecimal: the name of things kept by content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
