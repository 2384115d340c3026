"""Text, tokenized once and kept by content.

A folder of the cache holds one source in the ids of one tokenizer: `tokens.bin` (uint16, or uint32 for
large vocabularies), each document as BOS, its tokens, EOS; `offsets.npy`, where each begins;
`labels.npy`, where texts have labels, as numbers of the names that `meta.json` lists; `codes.npy` and
`code_offsets.npy`, where the vocabulary has control codes, their tokens; and that. Its name is a hash of
all that decides it, and it appears whole or not at all, so that several hosts, or a kill, do no harm.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import tqdm

from lm import codes as control
from lm.config import DataConfig, digest
from lm.data.slices import Document
from lm.data.source import Source
from lm.errors import InputError
from lm.tokenizer import Tokenizer

VERSION = 1  # Of the files' format.
NO_CODES: Mapping[str, int] = MappingProxyType({})
_BLOCK = 1 << 20  # Characters that one thread tokenizes at a time.
# What `str.split` takes for white space; all beyond is none.
_IS_SPACE = np.array([chr(point).isspace() for point in range(0x3002)])


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
        label_names: the labels, in the order of their first text; () where there are none.
        labels: int32 [texts], or [pairs]: the number of each one's label; or None.
        codes: int32 [all], the tokens of the documents' control codes, one after the other; or None.
        code_offsets: int64 [documents + 1], where those of each begin.
        paired: documents 2i and 2i + 1 are two sides of one thing, such as a text and its translation.
            The second is what is predicted: only it counts in num_targets, num_bytes and num_words.
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
    paired: bool = False
    label_names: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    codes: np.ndarray | None = None
    code_offsets: np.ndarray | None = None

    def document(self, index: int) -> np.ndarray:
        """Returns the stored tokens of a document, int32: BOS, its tokens, EOS."""
        return np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1]], np.int32)

    def codes_of(self, index: int) -> np.ndarray:
        """Returns the tokens of a document's codes, int32, none where it has none."""
        if self.codes is None:
            return np.zeros(0, np.int32)
        return self.codes[self.code_offsets[index] : self.code_offsets[index + 1]]

    @property
    def num_codes(self) -> np.ndarray:
        """Tokens of each document's codes, int64 [documents]."""
        if self.codes is None:
            return np.zeros(self.num_documents, np.int64)
        return np.diff(self.code_offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Stored tokens of each document, int64 [documents]."""
        return np.diff(self.offsets)


def tokenize(
    source: Source,
    tokenizer: Tokenizer,
    data: DataConfig,
    label: str,
    code_ids: Mapping[str, int] = NO_CODES,
) -> TokenizedSplit:
    """Returns the source's tokens, from the cache if they are there.

    Args:
        source: what to tokenize.
        tokenizer: with what.
        data: `cache_dir` and `workers` are read.
        label: what the progress bar calls it, such as `train`.
        code_ids: the ids of control codes by name, of `lm.vocabulary`.

    Raises:
        InputError: the source holds no text or cannot be read, or the cache cannot be written; or a code
            of a document is not known.
    """
    parts = [VERSION, source.fingerprint(), tokenizer.kind, tokenizer.fingerprint]
    key = digest(parts + [dict(code_ids)] * bool(code_ids))
    folder = cache_dir(data) / key
    exists = folder.exists()
    split = _open(folder, source.spec)
    if split is None:
        try:
            if exists:  # Whole when it appeared, so damaged since.
                shutil.rmtree(folder, ignore_errors=True)
            _write(folder, source, tokenizer, data.workers, label, code_ids)
        except OSError as error:
            raise InputError(
                f"the cache of tokenized text '{folder.parent}' cannot be written: {error.strerror}. "
                'Choose another folder by config.data.cache_dir or LM_CACHE_DIR.'
            ) from None
        split = _open(folder, source.spec)
    if split is None:
        raise InputError(f"the cache of tokenized text '{folder}' was removed while it was made.")
    return split


def from_texts(
    texts: Iterable[str], tokenizer: Tokenizer, code_tokens: Sequence[int] = ()
) -> TokenizedSplit:
    """Returns texts, each a document, as tokens in memory.

    Args:
        texts: empty ones are left out.
        tokenizer: with what.
        code_tokens: of the codes that each of them has.

    Raises:
        InputError: they hold no text.
    """
    texts = list(filter(None, texts))
    if not texts:
        raise InputError('there is no text to measure: all texts are empty.')
    encoded = _encode(_Block(texts, False, False, 0), tokenizer, np.dtype(np.int32))
    counts = dict(encoded.counts)
    targets = counts.pop('tokens') - counts['num_documents']
    offsets = np.concatenate([np.zeros(1, np.int64), encoded.ends])
    split = TokenizedSplit('', '', encoded.tokens, offsets, num_targets=targets, **counts)
    if not code_tokens:
        return split
    ends = len(code_tokens) * np.arange(len(texts) + 1)
    codes = np.array([*code_tokens] * len(texts), np.int32)
    return dataclasses.replace(split, codes=codes, code_offsets=ends)


def from_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    code_ids: Mapping[str, int] = NO_CODES,
    paired: bool = False,
) -> TokenizedSplit:
    """Returns documents as tokens in memory, with their codes, those of their length among them.

    Args:
        documents: none of them empty; of pairs both sides, one after the other.
        tokenizer: with what.
        code_ids: as in `tokenize`.
        paired: they are of pairs.

    Raises:
        InputError: there is none, or a code is not known.
    """
    codes = _Codes(code_ids, tokenizer, 'codes')
    split = from_texts([document.text for document in codes.noted(documents)], tokenizer)
    return dataclasses.replace(split, paired=paired, **(codes.arrays() if code_ids else {}))


def cache_dir(data: DataConfig) -> Path:
    """Returns the cache: `config.data.cache_dir`, else $LM_CACHE_DIR, else ~/.cache/lm."""
    return Path(data.cache_dir or os.environ.get('LM_CACHE_DIR') or '~/.cache/lm').expanduser()


def _open(folder: Path, spec: str) -> TokenizedSplit | None:
    """Returns what the folder holds, or None if it is not there or was damaged."""
    try:
        meta = json.loads((folder / 'meta.json').read_text())
        offsets = np.load(folder / 'offsets.npy')
        tokens = np.memmap(folder / 'tokens.bin', meta.pop('dtype'), 'r')
        names = tuple(meta.pop('label_names', ()))
        labels = np.load(folder / 'labels.npy') if names else None
        facts = {'tokens': tokens, 'offsets': offsets, 'label_names': names, 'labels': labels}
        if meta.pop('coded', False):
            facts |= {name: np.load(folder / f'{name}.npy') for name in ('codes', 'code_offsets')}
        split = TokenizedSplit(spec=spec, key=folder.name, **facts, **meta)
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        return None
    whole = len(offsets) == split.num_documents + 1 and len(tokens) == offsets[-1]
    if labels is not None:
        whole &= len(labels) * (1 + split.paired) == split.num_documents
    return split if whole else None


def _write(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    workers: int,
    label: str,
    code_ids: Mapping[str, int],
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'{folder.name}.', suffix='.partial', dir=folder.parent))
    try:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        encode = functools.partial(_encode, tokenizer=tokenizer, dtype=dtype, paired=source.paired)
        labels = _Labels()
        codes = _Codes(code_ids, tokenizer, f"source '{source.spec}'")
        documents = codes.noted(labels.noted(source.records()))
        blocks = _blocks(documents, tokenizer.splits_at_newlines)
        totals: collections.Counter[str] = collections.Counter()
        offsets = [np.zeros(1, np.int64)]
        with (partial / 'tokens.bin').open('wb') as file, _progress(label) as bar:
            for encoded in _in_order(encode, blocks, workers or _cores()):
                file.write(encoded.tokens)
                offsets.append(totals['tokens'] + encoded.ends)
                totals.update(encoded.counts)
                bar.update(encoded.counts['num_bytes'])
        offsets = np.concatenate(offsets)
        np.save(partial / 'offsets.npy', offsets)
        del totals['tokens']
        lengths = np.diff(offsets)
        predicted = lengths[1::2] if source.paired else lengths
        meta = {
            **totals,
            'num_targets': int((predicted - 1).sum()),
            'dtype': dtype.name,
            'paired': source.paired,
            'coded': bool(code_ids),
        }
        if labels.numbers:
            if len(labels.numbers) * (1 + source.paired) != totals['num_documents']:
                raise InputError(
                    f"the source '{source.spec}' has labels for some of its texts only."
                )
            meta['label_names'] = list(labels.names)
            np.save(partial / 'labels.npy', np.array(labels.numbers, np.int32))
        if code_ids:
            for name, values in codes.arrays().items():
                np.save(partial / f'{name}.npy', values)
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


class _Labels:
    """The labels of the documents that pass.

    Attributes:
        names: those seen, with the number of each.
        numbers: of each document that has one.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.numbers: list[int] = []

    def noted(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if document.label:
                self.numbers.append(self.names.setdefault(document.label, len(self.names)))
            yield document


class _Codes:
    """The tokens of the codes of documents that pass."""

    def __init__(self, ids: Mapping[str, int], tokenizer: Tokenizer, place: str) -> None:
        self._ids, self._tokenizer, self._place = ids, tokenizer, place
        self._tokens, self._offsets = array('i'), array('q', [0])

    def noted(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents."""
        for document in documents:
            names = [*document.codes, *control.of_length(document.text, self._ids)]
            encode = self._tokenizer.encode
            self._tokens.extend(control.tokens(names, self._ids, encode, self._place))
            self._offsets.append(len(self._tokens))
            yield document

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns `codes` and `code_offsets` of `TokenizedSplit`."""
        return {
            'codes': np.array(self._tokens, np.int32),
            'code_offsets': np.array(self._offsets, np.int64),
        }


# --- blocks of text, in several threads ------------------------------------------------------------


class _Block(NamedTuple):
    """Documents, of which the first may have begun and the last may go on in another block.

    Attributes:
        texts: the documents, or what of them is in this block.
        begun: the first text goes on from the block before.
        open: the last text goes on in the next block.
        invalid_bytes: of the documents that begin here.
        first: the number of the first document.
    """

    texts: list[str]
    begun: bool
    open: bool
    invalid_bytes: int
    first: int = 0


class _Encoded(NamedTuple):
    """A block's tokens [n], where in them documents end int64 [documents], and counts to add up."""

    tokens: np.ndarray
    ends: np.ndarray
    counts: dict[str, int]


def _blocks(documents: Iterable[Document], cut: bool) -> Iterator[_Block]:
    """Yields blocks of about `_BLOCK` characters; long documents are cut, after newlines."""
    texts, begun, size, invalid, first = [], False, 0, 0, 0
    for number, document in enumerate(documents):
        text = document.text
        first = first if texts else number
        invalid += document.invalid_bytes
        start = 0
        while start < len(text):
            stop = text.find('\n', start + _BLOCK) + 1 if cut else 0
            stop = stop or len(text)
            texts.append(text[start:stop])
            size += stop - start
            start = stop
            if size >= _BLOCK:
                is_open = stop < len(text)
                yield _Block(texts, begun, is_open, invalid, first)
                texts, begun, size, invalid, first = [], is_open, 0, 0, number
    if texts:
        yield _Block(texts, begun, False, invalid, first)


def _encode(block: _Block, tokenizer: Tokenizer, dtype: np.dtype, paired: bool = False) -> _Encoded:
    ids, lengths = tokenizer.encode_batch(block.texts)
    # BOS, ids, EOS of each text, but without the BOS of a begun one and the EOS of an open one.
    ends = np.cumsum(lengths + 2) - block.begun
    begins = (ends - lengths - 2)[block.begun :]
    tokens = np.full(ends[-1], tokenizer.specials.eos, dtype)
    tokens[begins] = tokenizer.specials.bos
    is_text = np.ones(len(tokens), bool)
    is_text[begins] = is_text[ends - 1] = False
    tokens[is_text] = ids
    if block.open:
        tokens, ends = tokens[:-1], ends[:-1]
    predicted = block.texts[1 - block.first % 2 :: 2] if paired else block.texts
    text = '\n'.join(predicted)
    counts = {
        'tokens': len(tokens),
        'num_documents': len(ends),
        'num_bytes': len(text.encode()) - max(len(predicted) - 1, 0),
        'num_words': _count_words(text),
        'invalid_bytes': block.invalid_bytes,
    }
    return _Encoded(tokens, ends, counts)


def _count_words(text: str) -> int:
    """Returns `len(text.split())`, ten times faster and without the interpreter's lock."""
    points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    space = _IS_SPACE.take(points, mode='clip')
    return int(np.count_nonzero(space[:-1] & ~space[1:]) + (not space[:1].all()))


def _in_order(
    encode: Callable[[_Block], _Encoded], blocks: Iterable[_Block], workers: int
) -> Iterator[_Encoded]:
    """Yields `encode(block)` of each block, in order, made in threads.

    Threads are enough, since sentencepiece and numpy release the interpreter's lock. At most two
    blocks a thread are under way, whatever the size of the text.
    """
    waiting: collections.deque[concurrent.futures.Future[_Encoded]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for block in blocks:
            waiting.append(pool.submit(encode, block))
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
