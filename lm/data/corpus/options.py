"""What a corpus' config says, typed; `configs/corpus/base.py` holds the keys, their units and reasons."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lm import config as configs
from lm.data import corpus_shards, source
from lm.data.source import Source
from lm.errors import InputError, lookup


@dataclasses.dataclass(frozen=True)
class Clean:
    """What is done to each document by itself."""

    max_characters: int
    max_invalid: float
    extract: str
    repair: bool
    unicode: str
    chinese: str
    languages: tuple[str, ...]
    language_score: float
    min_words: int
    filters: tuple[str, ...]
    mask: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Contamination:
    """What models will be evaluated on."""

    evaluation: tuple[str, ...]
    ngram: int
    shortest: int


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What occurs more than once."""

    exact: tuple[str, ...]
    min_characters: int
    boilerplate: int
    near: float
    shingle: int
    bands: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Split:
    """Parts of the corpus, by the hash of each document."""

    valid: float
    test: float
    salt: str


@dataclasses.dataclass(frozen=True)
class Output:
    """How shards are written."""

    format: str


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer of the corpus."""

    kind: str
    size: int
    train_bytes: int
    symbols: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """Where the work is done."""

    executor: str
    tasks: int
    shard_mb: float
    keep_work: bool
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """What is shown."""

    examples: int
    pairs: int
    planted: str


@dataclasses.dataclass(frozen=True)
class Options:
    """A corpus."""

    sources: tuple[str, ...]
    document: str
    tfds_dir: str
    clean: Clean
    contamination: Contamination
    duplicates: Duplicates
    split: Split
    output: Output
    vocabulary: Vocabulary
    run: Run
    report: Report


# Keys that a second start may change: they move the work, not the result.
RESUMABLE = re.compile(r'run\.(?!shard_mb)|vocabulary\.|report\.pairs$')

EXACT = ('document', 'paragraph', 'line')
_CHOICES = {
    'clean.extract': ('auto', 'always', 'never'),
    'clean.unicode': ('NFC', 'NFKC', 'none'),
    'clean.chinese': ('keep', 'simplified', 'traditional'),
    'duplicates.exact': EXACT,
    'output.format': tuple(corpus_shards.FORMATS),
    'vocabulary.kind': ('', 'unigram', 'bpe', 'words', 'chars', 'bytes'),
    'run.executor': ('local', 'slurm', 'ray'),
}
_RANGES = {
    r'clean\.max_characters|contamination\.\w+|duplicates\.(shingle|bands|rows)': (1, None),
    r'vocabulary\.(size|train_bytes)': (1, None),
    r'clean\.(max_invalid|language_score)|duplicates\.near|split\.(valid|test)': (0, 1),
    r'clean\.min_words|duplicates\.(min_characters|boilerplate)|run\.\w+|report\.\w+s': (0, None),
}


def parse(config: ConfigDict | Mapping[str, Any]) -> Options:
    """Returns the typed form of a config.

    Raises:
        InputError: a key is not known or missing, a value has the wrong type, is out of range or is no
            choice, or two sources have one name.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    found = configs.typed(Options, values, 'configs/corpus/base.py')
    # A plain dict, which other processes may get.
    found = dataclasses.replace(
        found, run=dataclasses.replace(found.run, options=dict(found.run.options))
    )
    flat = dict(configs.flatten(configs.to_dict(found)))
    for key, choices in _CHOICES.items():
        for value in flat[key] if isinstance(flat[key], list) else [flat[key]]:
            lookup(dict.fromkeys(choices), value, f'config.{key}')
    for key, value in flat.items():
        for pattern, (low, high) in _RANGES.items():
            if not re.fullmatch(pattern, key) or not isinstance(value, int | float):
                continue
            if value < low or (high is not None and value > high):
                most = '' if high is None else f' and at most {high}'
                raise InputError(f'config.{key} = {value} must be at least {low}{most}.')
    if found.split.valid + found.split.test >= 1:
        raise InputError('config.split.valid and config.split.test leave nothing to train on.')
    if not found.sources:
        raise InputError(
            "config.sources is empty: name what to read, such as ('books=text:books/*.txt',)."
        )
    named(found.sources, found, 'config.sources')
    named(found.contamination.evaluation, found, 'config.contamination.evaluation', read=False)
    return found


def named(
    specs: tuple[str, ...], options: Options, place: str, read: bool = True
) -> dict[str, Source | None]:
    """Returns the sources that `NAME=KIND:WHERE` say, by name.

    Args:
        specs: as in the config.
        options: `document` and `tfds_dir` are read.
        place: where they stand.
        read: False only looks at the names.

    Raises:
        InputError: one has no name, two have the same, or one cannot be read.
    """
    found: dict[str, Source | None] = {}
    for text in specs:
        name, equals, spec = text.partition('=')
        if not equals or not re.fullmatch(r'[\w.-]+', name):
            raise InputError(f"{place}: '{text}' has no name; write NAME={text}.")
        if name in found:
            raise InputError(
                f"{place}: two of them have the name '{name}'; give one of them another."
            )
        found[name] = _checked(open_source(spec, options), place) if read else None
    return found


# Fields of a record that a corpus writes itself.
_OWN = ('text', 'id', 'source', 'language')


def _checked(source: Source, place: str) -> Source:
    """Raises InputError where fields are kept by a name that is taken."""
    for field in source.codes:
        if field.startswith('='):
            raise InputError(
                f"{place}: '{source.spec}' has '{{{field}}}', which is for training; records have the name "
                'of their source.'
            )
        if field in _OWN:
            raise InputError(
                f"{place}: '{source.spec}' keeps a field '{field}', and each record has one of its own; "
                'give the field another name in the file.'
            )
    return source


def open_source(spec: str, options: Options) -> Source:
    """Returns a source of single texts.

    Raises:
        InputError: it cannot be read, or is of pairs.
    """
    defaults = configs.parse(configs.load('base')).data
    data = dataclasses.replace(
        defaults, document=options.document, tfds_dir=options.tfds_dir, prefix=''
    )
    opened = source.parse(spec, data)
    if opened.paired:
        raise InputError(
            f"source '{spec}' is of pairs; a corpus is of single texts: name one field."
        )
    return opened
