"""Where text comes from: `KIND:WHERE[#FIELD][SLICE]`, as `configs/base.py` lists it.

A source is read as a stream of documents, again and again, and never held in memory as a whole (but a
document is, and for plain text a document may be a file). Its fingerprint follows the content, not the
path, so that tokenized text is found again when files move.
"""

import dataclasses
import functools
import glob
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.config import DataConfig, digest
from lm.data import (
    archives,
    corpus_shards,
    files,
    numerals,
    parallel,
    pydocs,
    slices,
    table,
    tfds,
    triples,
)
from lm.data.slices import Document, Slice, decoded
from lm.data.triples import Triple
from lm.errors import InputError, lookup, nearest


def data_dir() -> Path:
    """Returns the folder that `data:` names are below: $LM_DATA_DIR."""
    return Path(os.environ.get('LM_DATA_DIR') or '../shared/data')


# A file -> its documents.
Reader = Callable[[Path], Iterator[Document]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A stream of documents.

    Attributes:
        spec: as written in the config.
        read: called for one pass over all documents.
        identity: called for a JSON value that changes when what `read` gives does.
        part: the part of them that this source is.
        paired: documents 2i and 2i + 1 are the two sides of pair i, both with text. Then `part` is in
            pairs, or percent of them.
        codes: what says which control codes its documents have, as written between the braces.
        facts: of a knowledge graph, called for its triples; each is two documents (or pairs), and `part`
            is in triples, or percent of them.
        parts: the sources that it joins, if it does.
        paths: the files that it is read from, in order, where one may be read without the others,
        read_one: by this. What `part` cuts off, and codes that all have, are not seen there.
    """

    spec: str
    read: Callable[[], Iterator[Document]]
    identity: Callable[[], Any]
    part: Slice
    paired: bool = False
    codes: tuple[str, ...] = ()
    facts: Callable[[], Iterator[Triple]] | None = None
    parts: tuple['Source', ...] = ()
    paths: tuple[Path, ...] = ()
    read_one: Reader | None = None

    @property
    def constants(self) -> tuple[str, ...]:
        """The codes that all of its documents have."""
        return tuple(code[1:] for code in self.codes if code.startswith('='))

    @property
    def graphs(self) -> tuple['Source', ...]:
        """Those that are of knowledge graphs: itself, or of the sources that it joins."""
        return tuple(part for part in self.parts or (self,) if part.facts)

    def records(self) -> Iterator[Document]:
        """Yields the documents that hold any text, with their counts of invalid bytes.

        Raises:
            InputError: none does, or a file cannot be read or has a bad line.
        """
        empty = True
        size = (1 + self.paired) * (2 if self.facts else 1)
        part, read = self.part, self.read
        for document in part.apply(read) if size == 1 else part.apply_to_groups(read, size):
            if document.text:
                empty = False
                yield document
        if empty:
            raise InputError(f"the source '{self.spec}' holds no text.")

    def documents(self) -> Iterator[str]:
        """Yields the texts of `records`."""
        return (document.text for document in self.records())

    def triples(self) -> list[Triple]:
        """Returns the triples of the part, of a knowledge graph."""
        return list(self.part.apply_to_groups(self.facts, 1))

    def fingerprint(self) -> str:
        """Returns the SHA-256, hexadecimal, of all that decides the documents."""
        part = [str(self.part.start), str(self.part.stop), self.part.unit]
        return digest([self.identity(), part, self.paired, *self.codes])


class Spec(NamedTuple):
    """`KIND:WHERE[#FIELD{CODES}][PART]`, taken apart; '' where one is not given."""

    text: str
    kind: str
    where: str
    field: str
    part: str
    codes: tuple[str, ...] = ()

    @property
    def code_fields(self) -> tuple[str, ...]:
        """The fields of a record that say its codes; what begins with = is a code itself."""
        return tuple(code for code in self.codes if not code.startswith('='))


def parse(text: str, data: DataConfig) -> Source:
    """Returns the source that a string of the config names; ` + ` stands between several.

    Raises:
        InputError: the string has another form, its kind or split is not known, it names files that do
            not exist, or some of several are of pairs and some are not.
    """
    if len(parts := text.split(' + ')) > 1:
        return _one_after_the_other(text, [parse(part, data) for part in parts])
    kind, colon, rest = text.partition(':')
    if not colon:
        raise InputError(f"source '{text}' has no kind; write KIND:WHERE, such as 'text:{text}'.")
    rest, part = _split_brackets(rest)
    where, _, field = rest.partition('#')
    field, codes = _split_codes(field, text)
    if not where:
        raise InputError(f"source '{text}' says no place after '{kind}:'.")
    maker = lookup(KINDS, kind, f"the kind of the source '{text}'")
    spec = Spec(text, kind, where, field, part, codes)
    made = _with_codes(maker(spec, data), spec)
    return _prefixed(made, data.prefix) if data.prefix else made


def _prefixed(source: Source, prefix: str) -> Source:
    """Returns the pairs with a prefix before their first texts."""
    if not source.paired:
        raise InputError(
            f"config.data.prefix = '{prefix}' stands before the sources of pairs, and "
            f"'{source.spec}' is of single texts; set it to ''."
        )

    def read() -> Iterator[Document]:
        for number, document in enumerate(source.read()):
            first = number % 2 == 0
            yield document._replace(text=prefix + document.text) if first else document

    return dataclasses.replace(
        source, read=read, identity=lambda: ['prefix', prefix, source.identity()]
    )


def _one_after_the_other(text: str, parts: list[Source]) -> Source:
    """Returns the documents of several sources as those of one."""
    if len({part.paired for part in parts}) > 1:
        pairs, single = (
            next(p.spec for p in parts if p.paired == paired) for paired in (True, False)
        )
        raise InputError(
            f"source '{text}': '{pairs}' is of pairs and '{single}' of single texts; only sources of the "
            "same can be joined by ' + '."
        )
    return Source(
        text,
        lambda: itertools.chain.from_iterable(part.records() for part in parts),
        lambda: ['one after the other', *(part.fingerprint() for part in parts)],
        Slice(),
        parts[0].paired,
        tuple(code for part in parts for code in part.codes),
        parts=tuple(parts),
    )


def _split_codes(field: str, text: str) -> tuple[str, tuple[str, ...]]:
    """Cuts off what stands in braces: `text{genre,=web}` -> `text`, (`genre`, `=web`)."""
    if not field.endswith('}'):
        return field, ()
    field, _, codes = field[:-1].partition('{')
    names = tuple(codes.split(','))
    if not all(name.removeprefix('=') for name in names):
        raise InputError(
            f"source '{text}': '{{{codes}}}' does not say codes; write {{FIELD,FIELD}} for fields that "
            'hold them, and {=CODE} for one that all documents have.'
        )
    return field, names


def _with_codes(source: Source, spec: Spec) -> Source:
    """Returns the source with those codes that all of its documents have."""
    if not spec.codes:
        return source
    if source.paired:
        raise InputError(f"source '{spec.text}' is of pairs, which take no codes.")
    coded = dataclasses.replace(source, codes=spec.codes)

    def read() -> Iterator[Document]:
        return (found._replace(codes=coded.constants + found.codes) for found in source.read())

    return dataclasses.replace(coded, read=read)


def _split_brackets(text: str) -> tuple[str, str]:
    """Cuts off the last pair of brackets: `a[0-9]#f[train[:10%]]` -> `a[0-9]#f`, `train[:10%]`."""
    if not text.endswith(']'):
        return text, ''
    depth = 0
    for start in range(len(text) - 1, -1, -1):
        depth += {']': 1, '[': -1}.get(text[start], 0)
        if depth == 0:
            return text[:start], text[start + 1 : -1]
    raise InputError(f"source '{text}' ends with a ']' that no '[' opens.")


def _slice(spec: Spec, paired: bool = False) -> Slice:
    part = slices.parse(spec.part, f"source '{spec.text}'") if spec.part else Slice()
    if paired and part.unit in ('c', 'w'):
        raise InputError(
            f"source '{spec.text}': the part '[{spec.part}]' would cut pairs apart; write [100:200] in "
            'pairs, or [:90%] in percent of them.'
        )
    return part


# The field that makes pairs of a knowledge graph's triples.
_ASKED = 'question,answer'


# --- kinds ---------------------------------------------------------------------------------------


def _builtin(spec: Spec, data: DataConfig) -> Source:
    module = lookup(BUILTIN, spec.where, f"the text of the source '{spec.text}'")
    paired, options = module is numerals, []
    if paired:
        options = [numerals.languages(spec.field, f"source '{spec.text}'")]
    else:
        _no_field(spec)
    named = ':' not in spec.part
    split = spec.part if named else ''
    lookup(module.SPLITS, split, f"the split of the source '{spec.text}'")
    return Source(
        spec.text,
        lambda: map(Document, module.documents(split, *options)),
        lambda: [module.identity(), split, *options],
        Slice() if named else _slice(spec, paired),
        paired,
    )


def _of_files(spec: Spec, read_one: Reader, identity: list[Any], **facts: Any) -> Source:
    """Returns a source of files that are read one after the other."""
    paths = _files(spec)
    return Source(
        spec.text,
        lambda: (document for path in paths for document in read_one(path)),
        lambda: [*identity, *map(files.content, paths)],
        _slice(spec, facts.get('paired', False)),
        paths=tuple(paths),
        read_one=read_one,
        **facts,
    )


def _text(spec: Spec, data: DataConfig, document: str = '') -> Source:
    _no_field(spec)
    rule = lookup(files.DOCUMENTS, document or data.document, 'config.data.document')
    return _of_files(spec, rule, ['text', document or data.document])


def _parallel(spec: Spec, data: DataConfig) -> Source:
    _no_field(spec)
    place = f"source '{spec.text}'"
    root = data_dir() if spec.kind == 'data' else Path()
    paths = []
    for side in parallel.sides(spec.where, place):
        found = _files(spec._replace(where=str(root / side)))
        if len(found) > 1:
            raise InputError(f"{place}: '{side}' matches {len(found)} files; a side is one file.")
        paths += found

    def read() -> Iterator[Document]:
        pairs = parallel.side_by_side(*map(files.lines, paths))
        return parallel.checked(pairs, (f"'{paths[0]}'", f"'{paths[1]}'"), place)

    return Source(
        spec.text, read, lambda: ['parallel', *map(files.content, paths)], _slice(spec, True), True
    )


def _records(spec: Spec, data: DataConfig, form: str, fields: str) -> Source:
    """Returns a source of records.

    Args:
        spec: the source.
        data: not used.
        form: of `RECORDS`.
        fields: those that are read where the source names none.
    """
    place = f"source '{spec.text}'"
    chosen = table.fields(spec.field or fields, place)._replace(codes=spec.code_fields)
    paired = len(chosen.texts) == 2
    part = _slice(spec, paired)
    if chosen.label and part.unit and not paired:
        raise InputError(
            f"{place}: the part '[{spec.part}]' would cut labelled texts apart; write [100:200] in texts."
        )

    def read_one(path: Path) -> Iterator[Document]:
        records = RECORDS[form](path, chosen)
        if not paired:
            return table.texts(records, chosen, path)
        sides = tuple(f"field '{name}' of '{path}'" for name in chosen.texts)
        return parallel.checked(table.pairs(records, chosen, path), sides, place)

    return _of_files(spec, read_one, [form, spec.field or fields], paired=paired)


def _of_lines(form: str, path: Path, chosen: table.Fields) -> Iterator[table.Record]:
    return table.FORMS[form](files.lines(path), chosen, path)


# (file, fields) -> its records.
RECORDS: dict[str, Callable[[Path, table.Fields], Iterator[table.Record]]] = {
    **{form: functools.partial(_of_lines, form) for form in table.FORMS},
    'parquet': archives.parquet,
    'warc': archives.warc,
}
_tsv = functools.partial(_records, form='tsv', fields='0,1')
_csv = functools.partial(_records, form='csv', fields='0,1')
_jsonl = functools.partial(_records, form='jsonl', fields='text')
_parquet = functools.partial(_records, form='parquet', fields='text')
_warc = functools.partial(_records, form='warc', fields='text')


def _corpus(spec: Spec, data: DataConfig) -> Source:
    """Returns a split of what `python -m lm.corpus` made."""
    _no_field(spec._replace(codes=()))
    split = '' if ':' in spec.part else spec.part
    made = corpus_shards.open_split(Path(spec.where).expanduser(), split, f"source '{spec.text}'")
    return Source(
        spec.text,
        lambda: made.documents(spec.code_fields),
        lambda: ['corpus', *made.digests],
        Slice() if split else _slice(spec),
    )


def _triples(spec: Spec, data: DataConfig) -> Source:
    forms = ('', 'triples') if spec.kind == 'data' else ('',)
    if spec.field not in (*forms, _ASKED):
        raise InputError(
            f"source '{spec.text}' has no field '#{spec.field}'; '#{_ASKED}' makes pairs of its triples."
        )
    _no_code_fields(spec)
    paired = spec.field == _ASKED
    paths = _files(spec)
    # The file that says what ids are called, by folder.
    names = {path.parent: found for path in paths if (found := files.beside(path, triples.NAMES))}

    def facts() -> Iterator[Triple]:
        for path in paths:
            known = names.get(path.parent)
            called = triples.read_names(files.lines(known), known) if known else {}
            yield from triples.read(files.lines(path), called, path)

    def identity() -> list[Any]:
        contents = map(files.content, [*paths, *names.values()])
        return ['triples', triples.VERSION, *contents]

    return Source(
        spec.text,
        lambda: triples.documents(facts(), paired),
        identity,
        _slice(spec, True),
        paired,
        facts=facts,
    )


def _data(spec: Spec, data: DataConfig) -> Source:
    if parallel.is_pair(spec.where):
        return _parallel(spec, data)
    if spec.field in ('triples', _ASKED):
        return _triples(spec._replace(where=str(data_dir() / spec.where)), data)
    kind = Path(files.unpacked_name(spec.where)).suffix
    spec = spec._replace(where=str(data_dir() / spec.where))
    return _BY_NAME.get(kind, _text)(spec, data)


def _tfds(spec: Spec, data: DataConfig) -> Source:
    _no_code_fields(spec)
    fields = (spec.field or 'text').split(',')
    prepared = tfds.open_split(spec.where, fields, spec.part, data.tfds_dir, spec.text)
    return Source(
        spec.text,
        lambda: (decoded(value) for value in prepared.values()),
        prepared.identity,
        Slice(),
        len(fields) == 2,
    )


# What a file is by its name, packed or not; others are plain text.
_BY_NAME = {
    '.jsonl': _jsonl,
    '.tsv': _tsv,
    '.csv': _csv,
    '.parquet': _parquet,
    '.warc': _warc,
}
KINDS: dict[str, Callable[[Spec, DataConfig], Source]] = {
    'builtin': _builtin,
    'text': _text,
    'lines': functools.partial(_text, document='line'),
    'paragraphs': functools.partial(_text, document='paragraph'),
    'jsonl': _jsonl,
    'parallel': _parallel,
    'tsv': _tsv,
    'csv': _csv,
    'parquet': _parquet,
    'warc': _warc,
    'corpus': _corpus,
    'tfds': _tfds,
    'triples': _triples,
    'data': _data,
}
BUILTIN = {'pydocs': pydocs, 'numerals': numerals}


def _no_field(spec: Spec) -> None:
    if spec.field:
        raise InputError(f"source '{spec.text}' has no field, and so no '#{spec.field}'.")
    _no_code_fields(spec)


def _no_code_fields(spec: Spec) -> None:
    for name in spec.code_fields:
        raise InputError(
            f"source '{spec.text}' has no field '{name}' that says codes; write '{{={name}}}' for a code "
            'that all its documents have.'
        )


def _files(spec: Spec) -> list[Path]:
    """Returns the files of a glob, sorted; a `data:` file may be there packed too."""
    pattern = os.path.expanduser(spec.where)
    if spec.kind == 'data' and not os.path.isfile(pattern):
        packed = (pattern + end for end in files.UNPACKERS)
        pattern = next(filter(os.path.isfile, packed), pattern)
    found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    paths = [Path(path) for path in found if os.path.isfile(path)]
    if paths:
        return paths
    if spec.kind == 'data':
        raise InputError(
            f"source '{spec.text}': there is no file '{pattern}'. Set LM_DATA_DIR to a folder that "
            'holds NAME/FILE; see "Your own data" in README.md on how to fill it.'
        )
    parent = Path(pattern).parent
    near = nearest(pattern, map(str, parent.iterdir())) if parent.is_dir() else ''
    near = near if near.startswith(' Did') else ''  # The other files of the folder say nothing.
    raise InputError(f"source '{spec.text}' matches no file.{near}")
