"""How a vocabulary fits its texts: by language and source, against its size, beside other tokenizers.

What is measured is in `lm.fertility`, how it is shown in `lm.vocabulary_page`.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm import config as configs
from lm import fertility, tokenizer, vocabulary, vocabulary_page
from lm.config import Config, DataConfig, TokenizerConfig
from lm.data import source
from lm.data.source import Source
from lm.errors import InputError
from lm.fertility import Counts
from lm.run import split_sources, train_tokenizer
from lm.tokenizer import Tokenizer, WrongSize
from lm.tokenizer_base import parts_of, spread

# Sizes that people know, marked in the figures: GPT-2 has 256 bytes, 50,000 merges and one special token.
KNOWN = {'GPT-2': 50_257}
SIZES = (1024, 2048, 4096, 8192, 16_384, 32_768, 50_257)
_NAMED = re.compile(r'([\w,-]+)=(\w+:.*)', re.DOTALL)
_FEW = 0.01  # The part of the bytes below which an identified language is 'other'.
_RANKS = 200  # Points of the curve of ranks.
_PIECES = 25  # That are shown as the most and the least frequent.


class Text(NamedTuple):
    """A text in parts, where it is from, and its language; '' where that is not said."""

    source: str
    language: str
    parts: list[str]


class Options(NamedTuple):
    """What a report is of, beyond a config.

    Attributes:
        sources: `KIND:WHERE`, or `en=KIND:WHERE` with a language, or of pairs `en,zh=KIND:WHERE`; none for
            those of the config.
        compare: tokenizers to measure beside: paths that `config.tokenizer.path` may have, or workdirs.
        sizes: of the vocabularies that are trained for the curve; None for `SIZES`.
        most: bytes of each source that are measured, spread over it.
        identify: tell languages by py3langid, where a source does not say its own.
    """

    sources: Sequence[str] = ()
    compare: Sequence[str] = ()
    sizes: Sequence[int] | None = None
    most: int = 2_000_000
    identify: bool = False


def report(
    config: Config,
    output: str | Path,
    options: Options,
    workdir: str | Path = '',
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Makes or loads a tokenizer, measures it, and writes it and report.{json,md,html} into a folder.

    Args:
        config: says the tokenizer and, if the options do not, the texts.
        output: the folder.
        options: what else.
        workdir: of a run whose tokenizer is measured; '' to make the config's, trained on the sources of
            the options if there are any.
        say: is told what is done.

    Returns:
        What report.json holds.

    Raises:
        InputError: a source, a tokenizer or a size is not what it should be.
    """
    named = [_named(text, config.data) for text in options.sources] or _of_config(config)
    sources = [_Source(name, languages, source.parse(*of)) for name, languages, *of in named]
    if not sources:
        raise InputError('there is no text to measure: name some by --source=en=text:a.txt.')
    for one in sources:
        one.check()
    others = _others(options.compare)
    if workdir:
        made = tokenizer.load(workdir)
    elif options.sources:
        made = tokenizer.build(
            config.tokenizer, lambda: (text for one in sources for text in one.read.documents())
        )
    else:
        made = train_tokenizer(config)
    say(f'{made.kind}, {made.vocab_size:,} ids')
    texts = [text for one in sources for text in one.texts(options.most)]
    texts = _identified(texts) if options.identify else texts
    content = {'tokenizer': _described(made, config.tokenizer), **measured(made, texts)}
    content['tokenizer']['from'] = str(workdir) or config.tokenizer.path
    content['compared'] = {
        name: {'kind': one.kind, 'vocab_size': one.vocab_size, **_of_groups(one, texts)}
        for name, one in others.items()
    }
    sizes = options.sizes
    if sizes is None:
        sizes = () if config.tokenizer.path else SIZES
    content['curve'] = curve(config.tokenizer, sizes, _groups(texts), content['groups'], say)
    content['sample'] = options.most
    vocabulary_page.write(output, made, content)
    return content


def _others(paths: Sequence[str]) -> dict[str, Tokenizer]:
    """Returns tokenizers by the names of their files, or by their paths where names are the same."""
    names = [Path(path).name for path in paths]
    keys = names if len(set(names)) == len(names) else paths
    found = (tokenizer.from_pretrained(path, '--compare') for path in paths)
    return dict(zip(keys, found, strict=True))


# --- texts ------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """A source, what it is called, and the language of its documents, or of each side of its pairs."""

    name: str
    languages: Sequence[str]
    read: Source

    def check(self) -> None:
        """Raises InputError where there are more languages than sides."""
        if len(self.languages) > 1 + self.read.paired:
            raise InputError(
                f"--source='{','.join(self.languages)}={self.read.spec}' names {len(self.languages)} "
                f'languages, and the source is of {"pairs" if self.read.paired else "single texts"}.'
            )

    def texts(self, most: int) -> list[Text]:
        """Reads at most so many bytes of each language."""

        def parts(number: int) -> Iterator[str]:
            for i, document in enumerate(self.read.documents()):
                if i % len(self.languages) == number:
                    yield from parts_of(document)

        return [
            Text(self.name, name, spread(parts(i), most)) for i, name in enumerate(self.languages)
        ]


def _named(text: str, data: DataConfig) -> tuple[str, list[str], str, DataConfig]:
    """Returns the name of a source, its languages and its specification: `en=text:a.txt`."""
    found = _NAMED.fullmatch(text)
    languages, spec = found.groups() if found else ('', text)
    return spec, languages.split(','), spec, dataclasses.replace(data, prefix='')


def _of_config(config: Config) -> list[tuple[str, list[str], str, DataConfig]]:
    return [
        (f'{name} {split}'.strip(), [''], spec, part.data)
        for name, part in configs.tasks(config).items()
        for split, spec in split_sources(part.data).items()
        if spec
    ]


def _identified(texts: Sequence[Text]) -> list[Text]:
    """Returns the texts by the languages that their parts are in, where they do not say their own.

    Those that few parts are in, which are mostly mistaken, are 'other'.
    """
    try:
        import py3langid
    except ImportError:
        raise InputError("--identify needs py3langid: pip install -e '.[corpus]'.") from None
    found: dict[tuple[str, str], list[str]] = {}
    sizes = collections.Counter[str]()
    for text in texts:
        for part in text.parts:
            language = text.language or py3langid.classify(part)[0]
            found.setdefault((text.source, language), []).append(part)
            sizes[language] += len(part.encode())
    named = {text.language for text in texts}
    few = {name for name in sizes.keys() - named if sizes[name] < _FEW * sizes.total()}
    merged: dict[tuple[str, str], list[str]] = {}
    for (name, language), parts in sorted(found.items()):
        merged.setdefault((name, 'other' if language in few else language), []).extend(parts)
    return [Text(*of, parts) for of, parts in merged.items()]


def _groups(texts: Sequence[Text]) -> dict[str, list[str]]:
    """Returns the texts by language, or by source where no language is known."""
    found: dict[str, list[str]] = {}
    for text in texts:
        found.setdefault(text.language or text.source, []).extend(text.parts)
    return found


# --- what is measured -------------------------------------------------------------------------------


def measured(made: Tokenizer, texts: Sequence[Text]) -> dict[str, Any]:
    """Returns what a tokenizer makes of texts.

    Returns:
        `all`, `groups` (by language, or source where no language is known) and `sources`, each as
        `lm.fertility.facts` has it, and `pieces`: the lengths of all, how often they occur by rank, the
        most and the least frequent, and how many never occur.
    """
    counted = [(text, fertility.count(made, text.parts)) for text in texts]

    def by(name: Callable[[Text], str]) -> dict[str, Any]:
        found: dict[str, list[Counts]] = {}
        for text, counts in counted:
            found.setdefault(name(text), []).append(counts)
        return {
            key: fertility.facts(made, fertility.added(made, some)) for key, some in found.items()
        }

    everything = fertility.added(made, [counts for _, counts in counted])
    return {
        'all': fertility.facts(made, everything),
        'groups': by(lambda text: text.language or text.source),
        'sources': by(lambda text: text.source),
        'pieces': _pieces(made, everything.used),
    }


def _of_groups(made: Tokenizer, texts: Sequence[Text]) -> dict[str, Any]:
    found = fertility.measure(made, _groups(texts))
    return {'all': found['all'], 'groups': found['languages']}


def _described(made: Tokenizer, spec: TokenizerConfig) -> dict[str, Any]:
    """Returns what a tokenizer is, with the special ids that the config adds to its own."""
    ids = vocabulary.build(made, spec)
    roles = {role: getattr(made.specials, role) for role in ('pad', 'bos', 'eos', 'unk')}
    return {
        'kind': made.kind,
        'vocab_size': made.vocab_size,
        'text_ids': int(made.is_text.sum()),
        'byte_ids': len(made.byte_ids()),
        'total': ids.total,
        'specials': {name: i for name, i in {**roles, 'mask': ids.mask}.items() if i >= 0},
        'sentinels': list(ids.sentinels),
        'codes': dict(ids.codes),
        'symbols': {symbol: int(made.encode(symbol)[0]) for symbol in spec.symbols},
        'fingerprint': made.fingerprint,
        'file': made.file,
    }


def _pieces(made: Tokenizer, used: np.ndarray) -> dict[str, Any]:
    ids, pieces = np.flatnonzero(made.is_text), made.pieces()
    counts = used[ids]
    order = np.argsort(-counts, kind='stable')
    occur = order[: np.count_nonzero(counts)]
    bytes_ = set(made.byte_ids().tolist())
    lengths: dict[int, int] = {}
    for i, piece in zip(ids.tolist(), pieces, strict=True):
        text = piece.decode(errors='surrogateescape')
        whole = i not in bytes_ and not any('\udc80' <= c <= '\udcff' for c in text)
        length = len(text) if whole else 0
        lengths[length] = lengths.get(length, 0) + 1

    def shown(some: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                'id': int(ids[i]),
                'piece': vocabulary_page.visible(pieces[i]),
                'count': int(counts[i]),
            }
            for i in some.tolist()
        ]

    last = len(occur)
    ranks = np.unique(np.geomspace(1, last, min(last, _RANKS)).astype(int)) if last else []
    return {
        'lengths': dict(sorted(lengths.items())),
        'ranks': [[int(rank), int(counts[occur[rank - 1]])] for rank in ranks],
        'most_frequent': shown(occur[:_PIECES]),
        'least_frequent': shown(occur[_PIECES:][-_PIECES:][::-1]),
        'unused': len(order) - last,
        'unused_such_as': shown(order[last:][:_PIECES]),
    }


def curve(
    spec: TokenizerConfig,
    sizes: Sequence[int],
    groups: Mapping[str, Sequence[str]],
    facts: Mapping[str, Mapping[str, Any]],
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """Trains vocabularies of several sizes on the sample, and measures each on it.

    Args:
        spec: what kind; its size and path are not read.
        sizes: those to try. One that is larger than the text supports becomes the largest that works,
            and one that is too small is left out.
        groups: texts by language.
        facts: what was measured of each.
        say: is told of each size.

    Returns:
        `kind`, `known` (sizes by name), `notes`, and `points`: `{'vocab_size': 4096, 'groups': {'en':
        {'tokens_per_word': 1.4, 'tokens_per_byte': 0.27}}}`.
    """
    found = {'kind': spec.kind, 'known': KNOWN, 'points': [], 'notes': []}
    if spec.kind not in tokenizer.WITH_SYMBOLS:
        return found
    texts = [part for parts in groups.values() for part in parts]
    room = sum(len(text.encode()) for text in texts)  # For all of it.
    done, trained = 0, set()
    for size in sorted(set(sizes)):
        if size <= done:
            continue
        asked = dataclasses.replace(spec, path='', vocab_size=size, train_bytes=room)
        try:
            made = tokenizer.build(asked, lambda: texts)
        except WrongSize as error:
            end, done = ('largest', max(sizes)) if error.right < size else ('smallest', error.right)
            found['notes'].append(f'The {end} that this text allows has {error.right:,} ids.')
            if end == 'smallest' or error.right in trained:
                continue
            asked = dataclasses.replace(asked, vocab_size=error.right)
            made = tokenizer.build(asked, lambda: texts)
        say(f'curve: {made.vocab_size:,} ids')
        rates = {
            name: _rates(len(made.encode_batch(parts)[0]), facts[name])
            for name, parts in groups.items()
        }
        trained.add(made.vocab_size)
        found['points'].append({'vocab_size': made.vocab_size, 'groups': rates})
    return found


def _rates(tokens: int, facts: Mapping[str, Any]) -> dict[str, float | None]:
    sizes = {'tokens_per_word': facts['words'], 'tokens_per_byte': facts['bytes']}
    return {name: tokens / size if size else None for name, size in sizes.items()}
