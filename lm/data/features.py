"""Text, tokenized once and kept by content.

A folder of the cache holds one source in the ids of one tokenizer, each document as BOS, its tokens, EOS.
Its name is a hash of all that decides it. `lm.data.cache` says what is in it, and how it comes through
kills and damage; `lm.data.shards` how tokens lie in files.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lm.config import DataConfig, digest
from lm.data import blocks, cache, shards
from lm.data.slices import Document
from lm.data.source import Source
from lm.errors import InputError
from lm.tokenizer import Tokenizer

VERSION = 2  # Of the files' format, and of where a shard ends.
NO_CODES: Mapping[str, int] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """A source in the ids of a tokenizer.

    Attributes:
        spec: the source as the config writes it.
        key: the name of the cache's folder.
        tokens: [stored], read by slices: an array in memory, or the shards of the cache, uint16 or uint32.
            Document d is `tokens[offsets[d]:offsets[d + 1]]` = BOS, its tokens, EOS.
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
    tokens: np.ndarray | shards.Tokens
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
        return self.window(index, 0, int(self.offsets[index + 1] - self.offsets[index]))

    def window(self, index: int, start: int, stop: int) -> np.ndarray:
        """Returns `document(index)[start:stop]`, int32, 0 <= start <= stop; nothing else is read."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return np.asarray(self.tokens[begin + start : min(begin + stop, end)], np.int32)

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
    parts = [VERSION, shards.form().suffix, source.fingerprint()]
    parts += [tokenizer.kind, tokenizer.fingerprint]
    folder = cache_dir(data) / digest(parts + [dict(code_ids)] * bool(code_ids))
    job = cache.Job(source, tokenizer, code_ids, data.workers, label)
    try:
        return _open(folder, cache.ready(folder, job), source.spec)
    except OSError as error:
        raise InputError(
            f"the cache of tokenized text '{folder.parent}' cannot be written: {error.strerror}. "
            'Choose another folder by config.data.cache_dir or LM_CACHE_DIR.'
        ) from None


def _open(folder: Path, index: cache.Index, spec: str) -> TokenizedSplit:
    names = [field.name for field in dataclasses.fields(TokenizedSplit)]
    facts = {name: value for name, value in index.items() if name in names}
    arrays = {name.removesuffix('.npy'): np.load(folder / name) for name in index['arrays']}
    tokens = shards.Tokens(folder, cache.shards_of(index), np.dtype(index['dtype']))
    facts |= {'offsets': np.append(np.int64(0), tokens.ends()), 'tokens': tokens}
    facts['label_names'] = tuple(index['label_names'])
    return TokenizedSplit(spec=spec, key=folder.name, **facts, **arrays)


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
    encoded = blocks.encode(blocks.Block(texts, False, False, 0), tokenizer, np.dtype(np.int32))
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
    codes = blocks.Codes(code_ids, tokenizer, 'codes')
    split = from_texts([document.text for document in codes.noted(documents)], tokenizer)
    return dataclasses.replace(split, paired=paired, **(codes.arrays() if code_ids else {}))


def cache_dir(data: DataConfig) -> Path:
    """Returns the cache: `config.data.cache_dir`, else $LM_CACHE_DIR, else ~/.cache/lm."""
    return Path(data.cache_dir or os.environ.get('LM_CACHE_DIR') or '~/.cache/lm').expanduser()
