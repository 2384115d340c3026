"""What `python -m lm.corpus` makes: shards of documents for each split, and `corpus.json`, their index.

A shard is a file of JSON records, a line each and packed by zstd, or ArrayRecord. A record has the
document's `text`, its `id`, the name of its `source`, and the fields that were kept.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from lm.data import files
from lm.data.slices import Document
from lm.data.table import code_values
from lm.errors import InputError, lookup

MANIFEST = 'corpus.json'
SPLITS = ('train', 'valid', 'test')
Json = dict[str, Any]

_LEVEL = 3  # Of zstd.
_FRAME = 1 << 22  # Bytes that are packed together, so that little is held in memory.
_READ_AT_ONCE = 1024  # Records.


def to_line(record: Json) -> bytes:
    """Returns a record as it is written: UTF-8, no spaces; the same bytes for the same record."""
    return json.dumps(record, ensure_ascii=False, separators=(',', ':')).encode()


class _Writer:
    """Writes a shard; the file is whole, or is not there."""

    def __init__(self, path: Path) -> None:
        for left in path.parent.glob(f'{path.name}.*.partial'):  # By a task that was killed.
            left.unlink()
        self._path = path
        self._partial = path.with_name(f'{path.name}.{os.getpid()}.partial')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Gives the file its name, unless something was raised."""
        self._close()
        if kind:
            self._partial.unlink()
        else:
            self._partial.replace(self._path)


class JsonlWriter(_Writer):
    """JSON records, a line each, packed by zstd."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        super().__init__(path)
        self._codec = pyarrow.Codec('zstd', compression_level=_LEVEL)
        self._file = self._partial.open('wb')
        self._block: list[bytes] = []
        self._size = 0

    def write(self, record: bytes) -> None:
        self._block.append(record + b'\n')
        self._size += len(record)
        if self._size > _FRAME:
            self._flush()

    def _flush(self) -> None:
        self._file.write(self._codec.compress(b''.join(self._block), asbytes=True))
        self._block, self._size = [], 0

    def _close(self) -> None:
        self._flush()
        self._file.close()


def read_jsonl(path: Path) -> Iterator[bytes]:
    """Yields the records of a shard."""
    with files.opened(path) as file:
        for line in file:
            yield line.rstrip(b'\n')


class ArrayRecordWriter(_Writer):
    """Records that are found by their number."""

    def __init__(self, path: Path) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter as Writer

        super().__init__(path)
        self._writer = Writer(str(self._partial), f'group_size:64,zstd:{_LEVEL}')

    def write(self, record: bytes) -> None:
        self._writer.write(record)

    def _close(self) -> None:
        self._writer.close()


def read_array_record(path: Path) -> Iterator[bytes]:
    """Yields the records of a shard."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        total = reader.num_records()
        for start in range(0, total, _READ_AT_ONCE):
            yield from reader.read(start, min(start + _READ_AT_ONCE, total))
    finally:
        reader.close()


@dataclasses.dataclass(frozen=True)
class Format:
    """How shards are written.

    Attributes:
        end: of the file's name.
        writer: path -> a context, whose value has `write(record)`.
        read: path -> records.
    """

    end: str
    writer: Callable[[Path], JsonlWriter | ArrayRecordWriter]
    read: Callable[[Path], Iterator[bytes]]


FORMATS = {
    'jsonl': Format('.jsonl.zst', JsonlWriter, read_jsonl),
    'array_record': Format('.array_record', ArrayRecordWriter, read_array_record),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a corpus.

    Attributes:
        folder: of the corpus.
        format: of its shards.
        shards: an entry of `corpus.json` for each: `name`, `size` in bytes, `sha256`, `documents`.
    """

    folder: Path
    format: Format
    shards: tuple[Json, ...]

    @property
    def digests(self) -> list[str]:
        """The SHA-256 of each shard."""
        return [shard['sha256'] for shard in self.shards]

    def records(self) -> Iterator[Json]:
        """Yields the records, of one shard after the other.

        Raises:
            InputError: a shard is not as it was written; nothing of it was yielded then.
        """
        for shard in self.shards:
            path = self.folder / shard['name']
            if not path.is_file() or files.content(path) != shard['sha256']:
                raise InputError(_altered(path))
            for line in self.format.read(path):
                yield json.loads(line)

    def documents(self, code_fields: tuple[str, ...] = ()) -> Iterator[Document]:
        """Yields the texts, with these fields as their codes."""
        for record in self.records():
            codes = (c for name in code_fields for c in code_values(record.get(name), name, name))
            yield Document(record['text'], codes=tuple(codes))


def open_split(folder: Path, split: str, place: str) -> Split:
    """Returns a split, or all of them together for ''.

    Raises:
        InputError: there is no corpus, it is not finished, or a shard is missing or cut.
    """
    try:
        made = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        unfinished = (folder / 'config.json').exists()
        hint = 'it is not finished: give the same command again' if unfinished else 'there is none'
        raise InputError(
            f"{place}: '{folder}' holds no corpus of `python -m lm.corpus`; {hint}."
        ) from None
    if split:
        lookup(made['splits'], split, f'{place}: the split')
    named = [split] if split else list(made['splits'])
    entries = [shard for name in named for shard in made['splits'][name]]
    for shard in entries:
        path = folder / shard['name']
        if not path.is_file() or path.stat().st_size != shard['size']:
            raise InputError(_altered(path))
    return Split(folder, FORMATS[made['format']], tuple(entries))


def _altered(path: Path) -> str:
    state = 'is not as it was written' if path.is_file() else 'is missing'
    return f"shard '{path}' {state}; `python -m lm.corpus` with its config makes it again."


def describe(folder: Path, path: Path, documents: int) -> Json:
    """Returns the entry of `corpus.json` for a shard."""
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return {
        'name': str(path.relative_to(folder)),
        'size': path.stat().st_size,
        'sha256': digest,
        'documents': documents,
    }
