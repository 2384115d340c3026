"""Whole words: the most frequent of a text, and everything else through its bytes."""

import collections
import functools
import hashlib
import itertools
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lm.config import TokenizerConfig
from lm.errors import InputError
from lm.tokenizer_base import (
    FIRST,
    UNK,
    Tokenizer,
    WrongSize,
    lengths_of,
    sample,
    symbols_of,
)

# Radicals, kana and ideographs; compatibility forms; the further planes.
CHINESE_OR_JAPANESE = (range(0x2E80, 0xA000), range(0xF900, 0xFB00), range(0x20000, 0x40000))
_RANGES = ''.join(f'{chr(r.start)}-{chr(r.stop - 1)}' for r in CHINESE_OR_JAPANESE)
# What stands between white space; each of those characters by itself.
SPACED = re.compile(rf'(?!\s)[{_RANGES}]|[^\s{_RANGES}]+')


def split(text: str) -> list[str]:
    """Returns the words of a text, which joined are the text again.

    >>> split('The cats,  (12) 一日\\n')
    ['The', ' cats', ',', ' ', ' (', '12', ')', ' 一', '日', '\\n']

    A word is a run of letters, marks and digits of any script; any other character, and each Chinese or
    Japanese one, is a word by itself. Each has the one space before it. Further spaces in a row are one
    piece, and all other white space is a piece a character. So no text is cut otherwise for standing
    after a newline.
    """
    return _pattern().findall(text)


@functools.cache
def _pattern() -> re.Pattern[str]:
    # Characters beyond the first plane, which Python's `re` looks up one range after the other, are
    # asked about only where one stands.
    near, far = (f'[{_ranges(points)}]' for points in (range(1 << 16), range(1 << 16, 0x110000)))
    far = f'(?=[\U00010000-\U0010ffff]){far}'
    far = f'(?:{far})+{near}*'
    word = f'(?:{near}+|{far})(?:{far})*'
    return re.compile(rf' ?{word}| ?\S| +(?= )|\s')


def _ranges(points: range) -> str:
    """Returns what of the points goes on a word, as the inside of a class of characters."""
    parts = []
    inside = [goes_on(point) for point in points] + [False]
    for point, (before, here) in zip(points, itertools.pairwise([False, *inside]), strict=False):
        if here and not before:
            parts.append(f'\\U{point:08x}-')
        elif before and not here:
            parts.append(f'\\U{point - 1:08x}')
    if parts and parts[-1].endswith('-'):
        parts.append(f'\\U{points[-1]:08x}')
    return ''.join(parts)


def goes_on(point: int) -> bool:
    """Returns whether the character is a letter, mark or digit that others may make a word with."""
    return unicodedata.category(chr(point))[0] in 'LMN' and not any(
        point in points for points in CHINESE_OR_JAPANESE
    )


class Words(Tokenizer):
    """Id = rank of the word among the most frequent; others are their bytes, or else one UNK each.

    After the special ids stand 256 for bytes, if others become bytes, then the symbols, then the words.
    It holds the interpreter's lock.

    Attributes:
        words: by falling frequency.
        symbols: texts that are one token each wherever they stand.
        byte_fallback: whether others become bytes.
    """

    kind = 'words'

    def __init__(self, words: Sequence[str], symbols: Sequence[str], byte_fallback: bool):
        self.words, self.symbols, self.byte_fallback = list(words), list(symbols), byte_fallback
        texts = [text.encode() for text in (*symbols, *words)]
        self._pieces = [*(bytes([byte]) for byte in range(256 * byte_fallback)), *texts]
        self.vocab_size = FIRST + len(self._pieces)
        first = self.vocab_size - len(texts)
        self._ids = {text: first + i for i, text in enumerate((*symbols, *words))}
        # White space is a piece a character anyway.
        marks = sorted((s for s in symbols if not s.isspace()), key=len, reverse=True)
        self._marks = re.compile(f'({"|".join(map(re.escape, marks))})') if marks else None
        self.fingerprint = hashlib.sha256(self.serialized()).hexdigest()

    def split(self, text: str) -> list[str]:
        """Returns the symbols of a text and the words between them; see `split`."""
        if self._marks is None:
            return split(text)
        found = []
        for i, part in enumerate(self._marks.split(text)):
            found += [part] if i % 2 else split(part)
        return found

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        cut = [self.split(text) for text in texts]
        words = list(itertools.chain.from_iterable(cut))
        known = map(self._ids.get, words, itertools.repeat(-1))
        ids, counts = np.fromiter(known, np.int32, len(words)), lengths_of(cut)
        lacking = ids < 0
        if not lacking.any() or not self.byte_fallback:
            ids[lacking] = UNK
            return ids, counts
        spelled = [words[i].encode() for i in np.flatnonzero(lacking).tolist()]
        sizes = np.ones(len(words), np.int64)
        sizes[lacking] = lengths_of(spelled)
        ids = np.repeat(ids, sizes)
        ids[np.repeat(lacking, sizes)] = FIRST + np.frombuffer(b''.join(spelled), np.uint8).astype(
            np.int32
        )
        ends = np.concatenate([[0], np.cumsum(sizes)])[np.cumsum(counts)]
        return ids, np.diff(ends, prepend=0)

    def pieces(self) -> list[bytes]:
        return list(self._pieces)

    def byte_ids(self) -> np.ndarray:
        return np.arange(FIRST, FIRST + 256 * self.byte_fallback)

    def _decode(self, ids: np.ndarray) -> str:
        pieces = self._pieces
        return b''.join(pieces[i] for i in (ids - FIRST).tolist()).decode(errors='replace')

    def serialized(self) -> bytes:
        fields = {'kind': self.kind, 'byte_fallback': self.byte_fallback}
        fields |= {'symbols': self.symbols, 'words': self.words}
        return json.dumps(fields).encode()


def train(spec: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Words:
    """Counts the words of a text; the most frequent are the vocabulary.

    Raises:
        WrongSize: the text has not so many words, or there is no room for any.
        InputError: there is no text.
    """
    lines = sample(texts(), spec.train_bytes)
    if not any(lines):
        raise InputError('the tokenizer has no text to train on: config.data.train is empty.')
    # Of one frequency the first in the order of Unicode.
    bare = Words((), symbols_of(spec), spec.byte_fallback)
    counts = collections.Counter[str]()
    for line in lines:
        counts.update(bare.split(line))
    for symbol in bare.symbols:
        counts.pop(symbol, None)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    room, most = spec.vocab_size - bare.vocab_size, bare.vocab_size + len(words)
    if room < 0:
        raise WrongSize(spec.vocab_size, bare.vocab_size, 'bytes and symbols')
    if room > len(words):
        raise WrongSize(spec.vocab_size, most)
    return Words(list(map(sys.intern, words[:room])), bare.symbols, spec.byte_fallback)
