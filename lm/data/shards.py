"""Tokens in files of bounded size, read by windows.

A shard holds a run of tokens and where in it documents end: the tokens (uint16 or uint32), then the ends
(int64, of which each counts from the shard's first token), both little-endian, as one string of bytes that
is cut into records of `RECORD` bytes. The same tokens make the same file, bit for bit.

    tokens of a shard   1 17 18  2  1 19 20 21  2  1 22        a document may go on in the next shard
    its ends                     4              9

The file is an ArrayRecord, not compressed, one record a chunk, so that a window reads one record or two;
or, where array_record has no package (it has one for Linux), the same string of bytes as it is.
"""

import bisect
import errno
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

try:
    from array_record.python import array_record_module as array_record
except ImportError:
    array_record = None

RECORD = 1 << 15  # Bytes.
_RECORDS_KEPT = 2048  # 64 MB, so that a small corpus is in memory after its first epoch.
_FILES_OPEN = 128
_END = np.dtype('<i8')


class Shard(NamedTuple):
    """What is known of a shard, without reading it.

    Attributes:
        name: of the file.
        size: its bytes.
        sha256: of them, hexadecimal.
        tokens: how many it holds.
        num_documents: that end in it.
        num_bytes, num_words: of the text, as in `lm.data.features.TokenizedSplit`.
        invalid_bytes: of the documents that begin in it.
    """

    name: str
    size: int
    sha256: str
    tokens: int
    num_documents: int
    num_bytes: int
    num_words: int
    invalid_bytes: int


# --- forms of files -------------------------------------------------------------------------------

# The number of a record -> its bytes.
Records = Callable[[int], bytes]


class Form(NamedTuple):
    """How records lie in a file: the end of its name, how it is written, and how it is read."""

    suffix: str
    write: Callable[[Path, bytes], None]
    read: Callable[[Path], Records]


def _write_array_record(path: Path, data: bytes) -> None:
    starts = range(0, len(data), RECORD)
    try:
        writer = array_record.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
        for start in starts:
            writer.write(data[start : start + RECORD])
        writer.close()
        whole = _reader(path).num_records() == len(starts)
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error)) from None
    if not whole:  # Closing a file says nothing of a full disk.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_array_record(path: Path) -> Records:
    reader = _reader(path)
    return lambda number: reader.read([number])[0]


def _reader(path: Path) -> 'array_record.ArrayRecordReader':
    return array_record.ArrayRecordReader(str(path), 'readahead_buffer_size:0,max_parallelism:0')


def _write_plain(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _read_plain(path: Path) -> Records:
    data = np.memmap(path, np.uint8, 'r')
    return lambda number: data[number * RECORD : (number + 1) * RECORD].tobytes()


FORMS = {
    form.suffix: form
    for form in (
        Form('.array_record', _write_array_record, _read_array_record),
        Form('.bin', _write_plain, _read_plain),
    )
}


def form() -> Form:
    """Returns the form in which shards are written here."""
    return FORMS['.array_record' if array_record else '.bin']


# --- writing ---------------------------------------------------------------------------------------


def write(
    path: Path, tokens: Sequence[np.ndarray], ends: Sequence[np.ndarray], dtype: np.dtype
) -> tuple[int, str]:
    """Writes a shard, under another name until it is whole, and returns its size and SHA-256.

    Args:
        path: its suffix is of `FORMS`.
        tokens: of the shard, in parts.
        ends: of its documents, in parts; from the shard's first token.
        dtype: of the tokens.

    Raises:
        OSError: it cannot be written.
    """
    tokens = (part.astype(dtype.newbyteorder('<'), copy=False) for part in tokens)
    data = b''.join([*tokens, *(part.astype(_END, copy=False) for part in ends)])
    temporary = path.with_name(path.name + '.tmp')
    FORMS[path.suffix].write(temporary, data)
    found = temporary.stat().st_size, sha256(temporary)
    temporary.replace(path)
    return found


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal; it releases the interpreter's lock."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def damage(path: Path, size: int, digest: str) -> str:
    """Returns what is wrong with a file; '' for nothing."""
    try:
        found = path.stat().st_size
        if found != size:
            return f'has {found:,} bytes instead of {size:,}'
        return (
            '' if sha256(path) == digest else 'has another SHA-256 than the one it was written with'
        )
    except FileNotFoundError:
        return 'is missing'
    except OSError as error:
        return f'cannot be read ({error.strerror})'


# --- reading ---------------------------------------------------------------------------------------


class Tokens:
    """The tokens of shards, one after the other, read as an array is: `tokens[start:stop]`.

    The records that were read last are kept. Threads may read at once.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self._folder, self._shards = folder, tuple(shards)
        self._begins = [0, *itertools.accumulate(shard.tokens for shard in self._shards)]
        self._in_record = RECORD // self.dtype.itemsize
        self._opened = functools.lru_cache(_FILES_OPEN)(self._open)
        self._record = functools.lru_cache(_RECORDS_KEPT)(self._read)

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        found = []
        while start < stop:
            shard = bisect.bisect_right(self._begins, start) - 1
            record, place = divmod(start - self._begins[shard], self._in_record)
            found.append(self._record(shard, record)[place : place + stop - start])
            start += len(found[-1])
        if len(found) == 1:
            return found[0]
        return np.concatenate([np.zeros(0, self.dtype), *found])

    def ends(self) -> np.ndarray:
        """Returns where documents end among all tokens, int64 [documents]."""
        found = [np.zeros(0, np.int64)]
        for number, shard in enumerate(self._shards):
            start = shard.tokens * self.dtype.itemsize
            stop = start + shard.num_documents * _END.itemsize
            records = range(start // RECORD, -(-stop // RECORD))
            data = b''.join(map(self._opened(number), records))
            ends = np.frombuffer(data, _END, shard.num_documents, start - records.start * RECORD)
            found.append(self._begins[number] + ends.astype(np.int64))
        return np.concatenate(found)

    def _open(self, number: int) -> Records:
        path = self._folder / self._shards[number].name
        return FORMS[path.suffix].read(path)

    def _read(self, number: int, record: int) -> np.ndarray:
        left = self._shards[number].tokens - record * self._in_record
        data = self._opened(number)(record)
        count = min(left, self._in_record)
        return np.frombuffer(data, self.dtype.newbyteorder('<'), count).astype(
            self.dtype, copy=False
        )
