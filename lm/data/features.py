"""Text, tokenized once and kept by content.

A folder of the cache holds one source in the ids of one tokenizer: `tokens.bin` (uint16, or uint32 for
large vocabularies), each document as BOS, its tokens, EOS; `offsets.npy`, where each begins; and
`meta.json`. Its name is a hash of all that decides it, and it appears whole or not at all, so that
several hosts, or a kill, do no harm.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm

from lm.config import DataConfig, digest
from lm.data.slices import Document
from lm.data.source import Source
from lm.errors import InputError
from lm.tokenizer import BOS, EOS, Tokenizer

VERSION = 1  # Of the files' format.
_BLOCK = 1 << 20  # Characters that one process tokenizes at a time.
_FEW_BLOCKS = 8  # So little text is tokenized before other processes have started.


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """A source in the ids of a tokenizer.

    Attributes:
        spec: the source as the config writes it.
        key: the name of the cache's folder.
        tokens: uint16 or uint32 [stored], a memory map; document d is
            `tokens[offsets[d]:offsets[d + 1]]` = BOS, its tokens, EOS.
        offsets: int64 [documents + 1].
        num_documents, num_targets: a document of m stored tokens has m - 1 targets.
        num_bytes: UTF-8 bytes of the text, the denominator of bits per byte.
        num_words: words of the text separated by white space, that of word perplexity.
        invalid_bytes: bytes of the source that were not UTF-8.
    """

    spec: str
    key: str
    tokens: np.ndarray
    offsets: np.ndarray
    num_documents: int
    num_targets: int
    num_bytes: int
    num_words: int
    invalid_bytes: int

    @property
    def lengths(self) -> np.ndarray:
        """Stored tokens of each document, int64 [documents]."""
        return np.diff(self.offsets)


def tokenize(source: Source, tokenizer: Tokenizer, data: DataConfig, label: str) -> TokenizedSplit:
    """Returns the source's tokens, from the cache if they are there.

    Args:
        source: what to tokenize.
        tokenizer: with what.
        data: `cache_dir` and `workers` are read.
        label: what the progress bar calls it, such as `train`.

    Raises:
        InputError: the source holds no text or cannot be read, or the cache cannot be written.
    """
    key = digest([VERSION, source.fingerprint(), tokenizer.kind, tokenizer.fingerprint])
    folder = cache_dir(data) / key
    exists = folder.exists()
    split = _open(folder, source.spec)
    if split is None:
        try:
            if exists:  # Whole when it appeared, so damaged since.
                shutil.rmtree(folder, ignore_errors=True)
            _write(folder, source, tokenizer, data.workers, label)
        except OSError as error:
            raise InputError(
                f"the cache of tokenized text '{folder.parent}' cannot be written: {error.strerror}. "
                'Choose another folder by config.data.cache_dir or LM_CACHE_DIR.'
            ) from None
        split = _open(folder, source.spec)
    if split is None:
        raise InputError(f"the cache of tokenized text '{folder}' was removed while it was made.")
    return split


def from_texts(texts: Iterable[str], tokenizer: Tokenizer) -> TokenizedSplit:
    """Returns texts, each a document, as tokens in memory.

    Raises:
        InputError: they hold no text.
    """
    pieces = [_Piece(text, True, True, 0) for text in texts if text]
    if not pieces:
        raise InputError('there is no text to measure: all texts are empty.')
    encoded = _encode(pieces, tokenizer, np.dtype(np.int32))
    counts = dict(encoded.counts)
    targets = counts.pop('tokens') - counts['num_documents']
    offsets = np.concatenate([np.zeros(1, np.int64), encoded.ends])
    return TokenizedSplit('', '', encoded.tokens, offsets, num_targets=targets, **counts)


def cache_dir(data: DataConfig) -> Path:
    """Returns the cache: `config.data.cache_dir`, else $LM_CACHE_DIR, else ~/.cache/lm."""
    return Path(data.cache_dir or os.environ.get('LM_CACHE_DIR') or '~/.cache/lm').expanduser()


def _open(folder: Path, spec: str) -> TokenizedSplit | None:
    """Returns what the folder holds, or None if it is not there or was damaged."""
    try:
        meta = json.loads((folder / 'meta.json').read_text())
        offsets = np.load(folder / 'offsets.npy')
        tokens = np.memmap(folder / 'tokens.bin', meta.pop('dtype'), 'r')
        split = TokenizedSplit(spec=spec, key=folder.name, tokens=tokens, offsets=offsets, **meta)
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        return None
    whole = len(offsets) == split.num_documents + 1 and len(tokens) == offsets[-1]
    return split if whole else None


def _write(folder: Path, source: Source, tokenizer: Tokenizer, workers: int, label: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'{folder.name}.', suffix='.partial', dir=folder.parent))
    try:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        encode = functools.partial(_encode, tokenizer=tokenizer, dtype=dtype)
        blocks = _blocks(source.records(), tokenizer.splits_at_newlines)
        totals: collections.Counter[str] = collections.Counter()
        offsets = [np.zeros(1, np.int64)]
        with (partial / 'tokens.bin').open('wb') as file, _progress(label) as bar:
            for encoded in _in_order(encode, blocks, workers or _cores()):
                file.write(encoded.tokens.tobytes())
                offsets.append(totals['tokens'] + encoded.ends)
                totals.update(encoded.counts)
                bar.update(encoded.counts['num_bytes'])
        np.save(partial / 'offsets.npy', np.concatenate(offsets))
        tokens = totals.pop('tokens')
        targets = tokens - totals['num_documents']
        meta = {**totals, 'num_targets': targets, 'dtype': dtype.name}
        (partial / 'meta.json').write_text(json.dumps(meta, indent=1))
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Gives the folder its name, unless another process was faster: its folder is the same."""
    try:
        partial.rename(folder)
    except OSError:
        if _open(folder, '') is None:
            raise


# --- blocks of text, in several processes --------------------------------------------------------


class _Piece(NamedTuple):
    """A document, or a part of a long one that ends after a newline."""

    text: str
    first: bool
    last: bool
    invalid_bytes: int


class _Encoded(NamedTuple):
    """A block's tokens [n], where in them documents end int64 [documents], and counts to add up."""

    tokens: np.ndarray
    ends: np.ndarray
    counts: dict[str, int]


def _blocks(documents: Iterable[Document], cut: bool) -> Iterator[list[_Piece]]:
    """Yields pieces in lists of about `_BLOCK` characters; long documents are cut at newlines."""
    block, size = [], 0
    for text, invalid_bytes in documents:
        start = 0
        while start < len(text):
            stop = text.find('\n', start + _BLOCK) + 1 if cut else 0
            stop = stop or len(text)
            invalid = invalid_bytes if start == 0 else 0
            block.append(_Piece(text[start:stop], start == 0, stop == len(text), invalid))
            size += stop - start
            start = stop
            if size >= _BLOCK:
                yield block
                block, size = [], 0
    if block:
        yield block


def _encode(block: list[_Piece], tokenizer: Tokenizer, dtype: np.dtype) -> _Encoded:
    arrays, ends, position = [], [], 0
    ids = tokenizer.encode_batch([piece.text for piece in block])
    for piece, tokens in zip(block, ids, strict=True):
        parts = [np.array([BOS])] * piece.first + [tokens] + [np.array([EOS])] * piece.last
        arrays += [part.astype(dtype) for part in parts]
        position += sum(map(len, parts))
        if piece.last:
            ends.append(position)
    counts = {
        'tokens': position,
        'num_documents': len(ends),
        'num_bytes': sum(len(piece.text.encode()) for piece in block),
        'num_words': sum(len(piece.text.split()) for piece in block),
        'invalid_bytes': sum(piece.invalid_bytes for piece in block),
    }
    return _Encoded(np.concatenate(arrays), np.array(ends, np.int64), counts)


def _in_order(
    encode: Callable[[list[_Piece]], _Encoded], blocks: Iterator[list[_Piece]], workers: int
) -> Iterator[_Encoded]:
    """Yields `encode(block)` of each block, in order; other processes help once there is much text.

    At most two blocks a process are under way, whatever the size of the text.
    """
    for _, block in zip(range(_FEW_BLOCKS), blocks, strict=False):
        yield encode(block)
    first = next(blocks, None)
    if first is None:
        return
    waiting = collections.deque([first])
    if workers > 1:
        try:
            yield from _in_processes(encode, blocks, workers, waiting)
        except BrokenProcessPool:
            # Started from a script without `if __name__ == '__main__'`, or short of memory.
            print('lm: tokenizing in one process, since others cannot start.', file=sys.stderr)
    while waiting:
        yield encode(waiting.popleft())
    yield from map(encode, blocks)


def _in_processes(
    encode: Callable[[list[_Piece]], _Encoded],
    blocks: Iterator[list[_Piece]],
    workers: int,
    waiting: collections.deque[list[_Piece]],
) -> Iterator[_Encoded]:
    """As `_in_order`; `waiting` holds the blocks that were taken and not yet yielded."""
    # Spawned and not forked: threads of jax and grain do not survive a fork.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_set_encoder, initargs=(encode,)
    ) as pool:
        futures: collections.deque[Any] = collections.deque()
        while waiting:
            futures.extend(
                pool.submit(_run_encoder, block) for block in list(waiting)[len(futures) :]
            )
            while len(waiting) < 2 * workers and (block := next(blocks, None)) is not None:
                waiting.append(block)
                futures.append(pool.submit(_run_encoder, block))
            encoded = futures.popleft().result()
            waiting.popleft()
            yield encoded


# In a worker: what it encodes with, so that the tokenizer is sent once and not with every block.
_encoder: list[Callable[[list[_Piece]], _Encoded]] = []


def _set_encoder(encode: Callable[[list[_Piece]], _Encoded]) -> None:
    _encoder[:] = [encode]


def _run_encoder(block: list[_Piece]) -> _Encoded:
    return _encoder[0](block)


def _cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _progress(label: str) -> tqdm.tqdm:
    """Returns a bar in MB; in a log file it says something only twice a minute."""
    live = sys.stderr.isatty()
    return tqdm.tqdm(
        desc=f'tokenize {label}',
        unit='B',
        unit_scale=True,
        delay=0.5 if live else 30,
        mininterval=0.1 if live else 30,
        dynamic_ncols=live,
    )
