"""How well a tokenizer fits texts: tokens per word and per byte, coverage, and what is unknown.

A word here is a run of letters, marks and digits, or any other visible character; each Chinese or
Japanese character is one (`lm.words_tokenizer.split`). So fertility is defined for texts with spaces and
without. Words that only white space (and Chinese or Japanese characters) keeps apart are
counted too: 'mat.' is one of those, and two of the others.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.tokenizer_base import Tokenizer
from lm.words_tokenizer import SPACED, split

_BLOCK = 1 << 20  # Characters that are encoded at once.


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """What texts hold and what a tokenizer makes of them. Counts of several texts add up.

    Attributes:
        words: how often each word occurs, with the space before it where it has one.
        characters: how often each character occurs, white space left out.
        used: how often each id occurs, int64 [vocab_size].
        texts: their number.
        length: characters.
        bytes: of UTF-8.
        spaced: words that white space keeps apart.
    """

    words: collections.Counter[str]
    characters: collections.Counter[str]
    used: np.ndarray
    texts: int = 0
    length: int = 0
    bytes: int = 0
    spaced: int = 0

    def __add__(self, other: 'Counts') -> 'Counts':
        names = [field.name for field in dataclasses.fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


def count(tokenizer: Tokenizer, texts: Iterable[str]) -> Counts:
    """Encodes texts and counts; memory grows with the number of different words only."""
    words, characters = collections.Counter[str](), collections.Counter[str]()
    used = np.zeros(tokenizer.vocab_size, np.int64)
    totals = collections.Counter[str]()
    for block in _blocks(texts):
        ids, _ = tokenizer.encode_batch(block)
        used += np.bincount(ids, minlength=tokenizer.vocab_size)
        for text in block:
            words.update(split(text))
            characters.update(text)
            totals.update(length=len(text), bytes=len(text.encode()))
            totals.update(texts=1, spaced=len(SPACED.findall(text)))
    for counter in (words, characters):
        for blank in [key for key in counter if key.isspace()]:
            del counter[blank]
    return Counts(words, characters, used, **totals)


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block, size = [], 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def facts(tokenizer: Tokenizer, counts: Counts) -> dict[str, Any]:
    """Returns what the counts come to.

    Returns:
        `texts characters bytes words spaced_words tokens`: how many.
        `tokens_per_word tokens_per_spaced_word tokens_per_byte bytes_per_token characters_per_token`.
        `unknown_rate byte_rate`: of the tokens those that stand for what the vocabulary lacks, and those
        that are a byte of it (or another part of a character).
        `word_coverage character_coverage`: of the words (characters) of the text those that are one token,
        alone or after a space; `different_word_coverage`, `different_character_coverage`: each counted
        once. A word is encoded by itself, with the space before it if it has one.
        `vocabulary_used`: of the ids that stand for text those that occur.
        `tokens_of_words`: `{1: 812, 2: 95, ...}`, words of the text by the tokens that each is by itself.

        Rates are from 0 to 1; None where nothing was counted.
    """
    tokens = int(counts.used.sum())
    kinds = _Kinds.of(tokenizer)
    words, spaced = counts.words.total(), counts.spaced
    of_words, of_characters = (
        _alone(tokenizer, kinds, counter) for counter in (counts.words, counts.characters)
    )
    found = np.bincount(of_words.lengths, of_words.numbers) if words else np.zeros(0)
    return {
        'texts': counts.texts,
        'characters': counts.length,
        'bytes': counts.bytes,
        'words': words,
        'spaced_words': spaced,
        'tokens': tokens,
        'tokens_per_word': _share(tokens, words),
        'tokens_per_spaced_word': _share(tokens, spaced),
        'tokens_per_byte': _share(tokens, counts.bytes),
        'bytes_per_token': _share(counts.bytes, tokens),
        'characters_per_token': _share(counts.length, tokens),
        'unknown_rate': _share(counts.used[kinds.unknown].sum(), tokens),
        'byte_rate': _share(counts.used[kinds.parts].sum(), tokens),
        'word_coverage': _share(of_words.numbers[of_words.single].sum(), words),
        'different_word_coverage': _share(of_words.single.sum(), len(counts.words)),
        'character_coverage': _share(
            of_characters.numbers[of_characters.single].sum(), counts.characters.total()
        ),
        'different_character_coverage': _share(of_characters.single.sum(), len(counts.characters)),
        'vocabulary_used': _share(
            np.count_nonzero(counts.used[tokenizer.is_text]), tokenizer.is_text.sum()
        ),
        'tokens_of_words': {i: int(n) for i, n in enumerate(found) if n},
    }


def measure(tokenizer: Tokenizer, texts: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Returns the facts of all texts and of each language's.

    Args:
        tokenizer: any kind.
        texts: by language, or by any other name.

    Returns:
        `{'all': facts, 'languages': {name: facts}}`, as `facts` has them.
    """
    counted = {name: count(tokenizer, some) for name, some in texts.items()}
    return {
        'all': facts(tokenizer, added(tokenizer, list(counted.values()))),
        'languages': {name: facts(tokenizer, counts) for name, counts in counted.items()},
    }


def added(tokenizer: Tokenizer, counts: Sequence[Counts]) -> Counts:
    """Returns the sum of counts; of none at all, that of no text."""
    return sum(counts, count(tokenizer, []))


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


@dataclasses.dataclass(frozen=True, eq=False)
class _Kinds:
    """Which ids are unknown, parts of characters (bytes, too), and white space, bool [vocab_size] each."""

    unknown: np.ndarray
    parts: np.ndarray
    blank: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> '_Kinds':
        unknown, parts, blank = np.zeros((3, tokenizer.vocab_size), bool)
        if tokenizer.specials.unk >= 0:
            unknown[tokenizer.specials.unk] = True
        parts[tokenizer.byte_ids()] = True
        pieces = [piece.decode(errors='surrogateescape') for piece in tokenizer.pieces()]
        ids = np.flatnonzero(tokenizer.is_text)
        parts[ids] |= [any('\udc80' <= c <= '\udcff' for c in piece) for piece in pieces]
        blank[ids] = [piece.isspace() for piece in pieces]
        return cls(unknown, parts, blank)


@dataclasses.dataclass(frozen=True, eq=False)
class _Alone:
    """Texts encoded one by one: tokens int64 [n], occurrences int64 [n], and which are one token."""

    lengths: np.ndarray
    numbers: np.ndarray
    single: np.ndarray


def _alone(tokenizer: Tokenizer, kinds: _Kinds, counter: Mapping[str, int]) -> _Alone:
    numbers = np.fromiter(counter.values(), np.int64, len(counter))
    if not counter:
        return _Alone(numbers, numbers, np.zeros(0, bool))
    ids, lengths = tokenizer.encode_batch(list(counter))
    ends = np.cumsum(lengths)

    def each(of: np.ndarray) -> np.ndarray:
        return np.diff(np.concatenate([[0], np.cumsum(of[ids])])[ends], prepend=0)

    single = (each(~kinds.blank) == 1) & (each(kinds.unknown) == 0)
    return _Alone(lengths, numbers, single)
