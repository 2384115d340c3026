"""Words and sentences of any language: nothing assumes spaces.

Where a script has no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan), each character
counts as a word.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
from datatrove.utils.word_tokenizers import WordTokenizer

# Characters that are words by themselves. (Not those of the vocabulary's whole-word masking: no Thai.)
_ALONE = (
    '\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff'
    '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
)
_WORD = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+(?:['’][^\\W_{_ALONE}]+)*")
# A word with the marks behind it, as it stands between spaces.
_SPACED = re.compile(f'[{_ALONE}][^\\w\\s]*|[^\\s{_ALONE}]+')
_LONE = re.compile(f'[{_ALONE}]')
_ACCENTS = re.compile('[\u0300-\u036f]+')
_DIGITS = re.compile(r'\d+')
_SENTENCE_END = re.compile(r'[.!?…]+[\'")\]”’]*(?=\s|$)|[。！？]+[”’」』）]*|\n')

_SAMPLE = 2000  # Characters that tell the script.


def spaced(text: str) -> list[str]:
    """Returns words as white space has them, with their marks.

    >>> spaced("Don't stop! 你好, x")
    ["Don't", 'stop!', '你', '好,', 'x']
    """
    return _SPACED.findall(text)


def count(text: str) -> int:
    """Returns how many words a text has, without marks."""
    return sum(1 for _ in _WORD.finditer(text))


def normal(text: str) -> list[str]:
    """Returns what is compared of a text: its words without case, accents and the digits of numbers.

    >>> normal('Caf\u00e9 No. 12, 你好')
    ['cafe', 'no', '0', '你', '好']
    """
    text = _DIGITS.sub('0', text.lower())
    if not text.isascii():
        text = _ACCENTS.sub('', unicodedata.normalize('NFKD', text))
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Returns sentences, by their marks and by lines.

    >>> sentences('It is 3.5. Or? 你好。再见。')
    ['It is 3.5.', 'Or?', '你好。', '再见。']
    """
    return [text[start:stop] for start, stop in _spans(text)]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yields where sentences begin and end, without the white space around them."""
    start = 0
    for stop in (*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)):
        found = text[start:stop]
        if shown := found.strip():
            begin = start + len(found) - len(found.lstrip())
            yield begin, begin + len(shown)
        start = stop


class Tokenizer(WordTokenizer):
    """The same for datatrove's filters, whose papers count words between spaces."""

    def word_tokenize(self, text: str) -> list[str]:
        return spaced(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return list(_spans(text))


def has_spaces(text: str) -> bool:
    """Does the text's script have spaces between words? By its first characters."""
    sample = text[:_SAMPLE]
    alone = len(_LONE.findall(sample))
    return alone * 4 < sum(map(str.isalnum, sample)) or not alone


def hashes(words: Iterable[str], known: dict[str, int]) -> np.ndarray:
    """Returns a 64-bit hash of each word, uint64 [words].

    Args:
        words: of a text.
        known: hashes by word, which grows.
    """
    import xxhash

    found = []
    for word in words:
        value = known.get(word)
        if value is None:
            if len(known) > 1 << 20:
                known.clear()
            value = known[word] = xxhash.xxh3_64_intdigest(word)
        found.append(value)
    return np.array(found, np.uint64)


def ngrams(hashed: np.ndarray, n: int) -> np.ndarray:
    """Returns a 64-bit hash of each n words in a row, uint64 [max(0, words - n + 1)].

    A polynomial in an odd number, stirred (the finalizer of splitmix64, Steele et al. 2014).
    """
    size = len(hashed) - n + 1
    if size <= 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(size, np.uint64)
    for start in range(n):
        total *= np.uint64(0x9E3779B97F4A7C15)
        total += hashed[start : start + size]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        total ^= total >> np.uint64(shift)
        total *= np.uint64(factor)
    return total ^ (total >> np.uint64(31))
