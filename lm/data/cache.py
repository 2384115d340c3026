"""The folder of a tokenized source: how it is made, gone on with, checked and mended.

    KEY/00000.array_record    a shard: the tokens of `SHARD_BLOCKS` blocks (see `lm.data.shards`)
        00000.json            what is known of it (`Shard`), written when the shard is whole
        labels.npy            where texts have labels, their numbers in `label_names`
        codes.npy, code_offsets.npy    where the vocabulary has control codes, the documents' tokens of them
        index.json            all of it: the counts of the split, and of every file the size and the SHA-256

Until the index is written, which is last, the folder is called `KEY.partial`; shards that are there are
not tokenized again. Nothing is read that is not as the index has it: a shard that is missing, cut or
altered is made again from the source, and must come out as it was. Both kinds of JSON hold a digest of
themselves.
"""

import collections
import contextlib
import errno
import functools
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import tqdm

from lm.config import digest
from lm.data import blocks, shards
from lm.data.shards import Shard
from lm.data.source import Source
from lm.environment import cores
from lm.errors import InputError
from lm.tokenizer import Tokenizer

SHARD_BLOCKS = 64  # 32 million characters.
_INDEX = 'index.json'

Index = dict[str, Any]


class Job(NamedTuple):
    """What is tokenized, with what, by how many threads, and what the progress bar calls it."""

    source: Source
    tokenizer: Tokenizer
    code_ids: Mapping[str, int]
    workers: int
    label: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32)


class _Changed(Exception):
    """A shard did not come out as it was."""


def ready(folder: Path, job: Job) -> Index:
    """Returns the index of a folder that is whole, after making or mending what is not.

    Raises:
        InputError: the source holds no text, cannot be read, or has labels for some of its texts only.
        OSError: the folder cannot be written.
    """
    index = _sealed(folder / _INDEX)
    if index is None or _damaged(folder, _files(index), job):
        with _alone(folder, job.label):
            index = _sealed(folder / _INDEX)
            if index is None:
                if folder.exists():
                    _say(folder / _INDEX, 'is missing or damaged')
                _make(folder, job)
            elif bad := _damaged(folder, _files(index), job):
                _mend(folder, job, index, bad)
        index = _sealed(folder / _INDEX)
    if index is None:
        raise InputError(f"the cache of tokenized text '{folder}' was removed while it was made.")
    return index


def shards_of(index: Index) -> list[Shard]:
    """Returns the shards that an index names."""
    return [Shard(**fields) for fields in index['shards']]


# --- making and mending ------------------------------------------------------------------------------


def _make(folder: Path, job: Job) -> None:
    """Makes the folder, or goes on with it: with what lies in KEY.partial, or in KEY without an index."""
    work = folder if folder.exists() else folder.with_name(f'{folder.name}.partial')
    work.mkdir(parents=True, exist_ok=True)
    known = dict(_finished(work))
    bad = _damaged(work, {shard.name: shard[1:3] for shard in known.values()}, job)
    for name, what in bad.items():
        _say(work / name, what)
    try:
        _write_all(work, job, known, bad)
    except InputError:
        if work != folder and not dict(
            _finished(work)
        ):  # Nothing that a next try could go on with.
            shutil.rmtree(work, ignore_errors=True)
        raise
    if work != folder:
        work.rename(folder)


def _mend(folder: Path, job: Job, index: Index, bad: dict[str, str]) -> None:
    """Makes again what is damaged; where that is shards only, nothing else is written."""
    for name, what in bad.items():
        _say(folder / name, what)
    known = dict(enumerate(shards_of(index)))
    if index['arrays'].keys() & bad.keys():
        _write_all(folder, job, known, bad)
        return
    kept = {number: shard for number, shard in known.items() if shard.name not in bad}
    missing = known.keys() - kept.keys()
    try:
        for number, _ in _shards(folder, job, job.source.records(), kept, known):
            missing -= {number}
            if not missing:
                return
    except _Changed:
        pass
    _write_all(folder, job, {}, {})


def _write_all(folder: Path, job: Job, known: dict[int, Shard], bad: Mapping[str, str]) -> None:
    """Writes the shards that are not known or bad, the arrays beside them, and the index."""
    kept = {number: shard for number, shard in known.items() if shard.name not in bad}
    labels = blocks.Labels()
    codes = blocks.Codes(job.code_ids, job.tokenizer, f"source '{job.source.spec}'")
    documents = codes.noted(labels.noted(job.source.records()))
    try:
        made = [shard for _, shard in _shards(folder, job, documents, kept, known)]
    except _Changed:
        _write_all(folder, job, {}, {})
        return
    arrays = codes.arrays() if job.code_ids else {}
    if labels.numbers:
        arrays['labels'] = np.array(labels.numbers, np.int32)
    index = _counts(folder, job, made)
    if labels.numbers and len(labels.numbers) * (1 + job.source.paired) != index['num_documents']:
        raise InputError(f"the source '{job.source.spec}' has labels for some of its texts only.")
    index |= {
        'dtype': job.dtype.name,
        'paired': job.source.paired,
        'label_names': list(labels.names),
        'arrays': {f'{name}.npy': _save(folder, name, array) for name, array in arrays.items()},
        'shards': [shard._asdict() for shard in made],
    }
    _seal(folder / _INDEX, index)


def _counts(folder: Path, job: Job, made: list[Shard]) -> Index:
    """Returns the counts of a split, of `lm.data.features.TokenizedSplit`."""
    names = 'num_documents', 'num_bytes', 'num_words', 'invalid_bytes'
    counts = {name: sum(getattr(shard, name) for shard in made) for name in names}
    lengths = np.diff(shards.Tokens(folder, made, job.dtype).ends(), prepend=0)
    predicted = lengths[1::2] if job.source.paired else lengths
    return counts | {'num_targets': int((predicted - 1).sum())}


def _shards(
    folder: Path,
    job: Job,
    documents: Iterator[blocks.Document],
    kept: Mapping[int, Shard],
    known: Mapping[int, Shard],
) -> Iterator[tuple[int, Shard]]:
    """Yields (number, shard) of all shards of the documents, after writing those that are not kept.

    Raises:
        _Changed: one is not as it is known to have been. Then nothing in the folder is known any more.
    """
    encode = functools.partial(
        blocks.encode, tokenizer=job.tokenizer, dtype=job.dtype, paired=job.source.paired
    )

    def work(item: tuple[int, blocks.Block]) -> tuple[int, blocks.Encoded | None]:
        shard = item[0] // SHARD_BLOCKS
        return shard, None if shard in kept else encode(item[1])

    items = enumerate(blocks.cut(documents, job.tokenizer.splits_at_newlines))
    made = blocks.in_order(work, items, job.workers or cores())
    with _progress(f'tokenize {job.label}') as bar:
        for number, group in itertools.groupby(made, key=lambda item: item[0]):
            parts = []
            for _, part in group:
                parts.append(part)
                bar.update(part.counts['num_bytes'] if part else 0)
            if number in kept:
                bar.update(kept[number].num_bytes)
                yield number, kept[number]
                continue
            shard = _write(folder, number, parts, job.dtype)
            if known.get(number, shard) != shard:
                _say(
                    folder / shard.name,
                    'is not what it was: the source or a library has changed',
                    'all',
                )
                for path in (folder / _INDEX, *folder.glob('[0-9]*')):
                    path.unlink(missing_ok=True)
                raise _Changed
            _seal(_facts(folder, number), shard._asdict())
            yield number, shard


def _write(folder: Path, number: int, parts: list[blocks.Encoded], dtype: np.dtype) -> Shard:
    totals = collections.Counter()
    ends = []
    for part in parts:
        ends.append(totals['tokens'] + part.ends)
        totals.update(part.counts)
    name = f'{number:05}{shards.form().suffix}'
    written = shards.write(folder / name, [part.tokens for part in parts], ends, dtype)
    return Shard(name, *written, **totals)


def _finished(folder: Path) -> Iterator[tuple[int, Shard]]:
    """Yields the shards that the folder's own notes call finished."""
    for path in sorted(folder.glob('[0-9]*.json')):
        if fields := _sealed(path):
            yield int(path.stem), Shard(**fields)
        else:
            _say(path, 'is damaged')


def _facts(folder: Path, number: int) -> Path:
    return folder / f'{number:05}.json'


def _save(folder: Path, name: str, array: np.ndarray) -> list[Any]:
    """Writes an array and returns its file's size and SHA-256."""
    temporary = folder / f'{name}.npy.tmp'
    with temporary.open('wb') as file:
        np.save(file, array)
    found = [temporary.stat().st_size, shards.sha256(temporary)]
    temporary.replace(folder / f'{name}.npy')
    return found


# --- checking --------------------------------------------------------------------------------------


def _files(index: Index) -> dict[str, tuple[int, str]]:
    """Returns the size and the SHA-256 of each file that an index names."""
    return {shard.name: shard[1:3] for shard in shards_of(index)} | index['arrays']


def _damaged(folder: Path, files: Mapping[str, tuple[int, str]], job: Job) -> dict[str, str]:
    """Returns what is wrong with each file that is not as it was written; it reads all of them."""

    def look(item: tuple[str, tuple[int, str]]) -> tuple[str, int, str]:
        name, (size, digest) = item
        return name, size, shards.damage(folder / name, size, digest)

    bad = {}
    with _progress(f'check {job.label}') as bar:
        for name, size, what in blocks.in_order(look, files.items(), cores()):
            bar.update(size)
            if what:
                bad[name] = what
    return bad


def _seal(path: Path, fields: dict[str, Any]) -> None:
    """Writes JSON with a digest of itself, as a whole."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(json.dumps({**fields, 'digest': digest(fields)}, indent=1))
    temporary.replace(path)


def _sealed(path: Path) -> dict[str, Any] | None:
    """Returns what `_seal` wrote, or None where it is not there or was altered since."""
    try:
        fields = json.loads(path.read_bytes())
        seal = fields.pop('digest')
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return fields if seal == digest(fields) else None


# --- saying ----------------------------------------------------------------------------------------


def _say(path: Path, what: str, again: str = 'it') -> None:
    print(f"lm: tokenized text: '{path}' {what}; {again} is made again.", file=sys.stderr)


@contextlib.contextmanager
def _alone(folder: Path, label: str) -> Iterator[None]:
    """Holds the lock of a folder, which others wait for; a process that dies lets go of it."""
    path = folder.parent / 'locks' / folder.name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"lm: another process tokenizes {label}; waiting for it ('{path}').", file=sys.stderr)
        lock.acquire()
    except NotImplementedError:
        raise OSError(errno.ENOLCK, 'its file system has no locks (flock)') from None
    try:
        yield
    finally:
        lock.release()


def _progress(label: str) -> tqdm.tqdm:
    """Returns a bar in MB; in a log file it says something only twice a minute."""
    live = sys.stderr.isatty()
    return tqdm.tqdm(
        desc=label,
        unit='B',
        unit_scale=True,
        delay=0.5 if live else 30,
        mininterval=0.1 if live else 30,
        dynamic_ncols=live,
    )
