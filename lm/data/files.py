"""Files of text, packed or not: lines, paragraphs, wholes; what is wrong with a file is one line."""

import concurrent.futures
import contextlib
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lm.data.slices import Document, decoded
from lm.errors import InputError


def _open_zst(path: Path) -> BinaryIO:
    import pyarrow  # Python 3.11 has no module for it; this one notices where a file ends too soon.

    return io.BufferedReader(pyarrow.input_stream(str(path), compression='zstd'))


# By the end of the file's name.
UNPACKERS: dict[str, Callable[[Path], BinaryIO]] = {
    '.gz': gzip.open,
    '.xz': lzma.open,
    '.zst': _open_zst,
}


def unpacked_name(path: str | Path) -> str:
    """Returns the path without the end that says how the file is packed."""
    path = str(path)
    return path.removesuffix(next(filter(path.endswith, UNPACKERS), ''))


@contextlib.contextmanager
def opened(path: Path, unpack: bool = True) -> Iterator[BinaryIO]:
    """Opens a file for reading; what goes wrong in the block becomes one line."""
    packed = unpack and path.suffix in UNPACKERS
    try:
        with UNPACKERS[path.suffix](path) if packed else path.open('rb') as file:
            yield file
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise InputError(f"'{path}' is damaged: {error}.") from None
    except OSError as error:
        if packed and error.errno is None:
            raise InputError(f"'{path}' is damaged: {error}.") from None
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from None


def content(path: Path) -> str:
    """Returns the SHA-256 of a file as it lies on disk."""
    with opened(path, unpack=False) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def contents(paths: Sequence[Path]) -> list[str]:
    """Returns `content` of each file, and how it is unpacked; several are read at a time."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(content, paths))
    packed = (path.suffix if path.suffix in UNPACKERS else '' for path in paths)
    return [digest + end for digest, end in zip(found, packed, strict=True)]


def beside(path: Path, name: str) -> Path | None:
    """Returns the file of this name in the same folder, packed or not, if there is one."""
    found = (path.with_name(name + end) for end in ('', *UNPACKERS))
    return next(filter(Path.is_file, found), None)


def whole_file(path: Path) -> Iterator[Document]:
    """Yields the file's text."""
    with opened(path) as file:
        yield decoded(file.read().removeprefix(b'\xef\xbb\xbf'))


def lines(path: Path) -> Iterator[Document]:
    """Yields the lines without their ends; empty ones are skipped by `Source.records`."""
    with opened(path) as file:
        for number, line in enumerate(file):
            line = line.removeprefix(b'\xef\xbb\xbf') if number == 0 else line
            yield decoded(line.rstrip(b'\r\n'))


def paragraphs(path: Path) -> Iterator[Document]:
    """Yields runs of lines between blank ones."""
    kept: list[Document] = []
    for line in lines(path):
        if line.text.strip():
            kept.append(line)
        elif kept:
            yield _joined(kept)
            kept = []
    if kept:
        yield _joined(kept)


def _joined(found: list[Document]) -> Document:
    return Document('\n'.join(line.text for line in found), sum(x.invalid_bytes for x in found))


# What a document is in plain text: file -> documents.
DOCUMENTS: dict[str, Callable[[Path], Iterator[Document]]] = {
    'file': whole_file,
    'line': lines,
    'paragraph': paragraphs,
}
