"""What every tokenizer offers, and how those that learn from text read it.

The kinds are in `lm.tokenizer`, whose names are for all other code.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import ClassVar

import numpy as np

from lm.config import TokenizerConfig
from lm.errors import InputError

PAD, BOS, EOS, UNK = range(4)  # Of what is trained here.
FIRST = 4  # The first id of text then.

# Characters. Below sentencepiece's limit of 4192 bytes a line, above which it drops the line.
_TRAIN_LINE = 1000
_PART = 4000


@dataclasses.dataclass(frozen=True)
class Specials:
    """The ids that stand for no text; by default those of what is trained here.

    They may stand anywhere, and one id may serve as several: GPT-2's 50256 is its BOS, EOS and PAD.

    Attributes:
        pad: fills rows. EOS where there is none of its own: nothing reads what padding is.
        bos: begins a document; and what the decoder of an encoder-decoder writes.
        eos: ends it.
        unk: what the vocabulary lacks; -1 where it lacks nothing.
        mask: hides a token; -1 for none.
        sentinels: stand for spans, in the order of their use.
    """

    pad: int = PAD
    bos: int = BOS
    eos: int = EOS
    unk: int = UNK
    mask: int = -1
    sentinels: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        """All that there are, ascending."""
        found = {self.pad, self.bos, self.eos, self.unk, self.mask, *self.sentinels}
        return sorted(found - {-1})

    def completed(self, first: int) -> 'Specials':
        """Returns these with a PAD, a BOS and an EOS.

        >>> Specials(pad=-1, bos=-1, eos=1, unk=2).completed(first=300)
        Specials(pad=1, bos=300, eos=1, unk=2)

        Args:
            first: the first id that is free, for BOS and EOS where they are -1.
        """
        free = itertools.count(first)
        bos, eos = (next(free) if i < 0 else i for i in (self.bos, self.eos))
        return dataclasses.replace(self, pad=eos if self.pad < 0 else self.pad, bos=bos, eos=eos)


class Tokenizer:
    """What every kind offers.

    Attributes:
        kind: the entry in `KINDS`.
        vocab_size: number of ids; ids are 0 <= id < vocab_size.
        specials: which of them are special.
        fingerprint: SHA-256, hexadecimal, of all that decides the ids.
        before: ids that a published tokenizer puts before a text; `encode` puts none.
        splits_at_newlines: a text cut after a newline has the ids of its parts (or others as good,
            where segmentations tie), so that a long one may be encoded in parts.
    """

    kind: ClassVar[str] = ''
    file: str = 'tokenizer.json'
    vocab_size: int
    specials: Specials = Specials()
    fingerprint: str
    before: tuple[int, ...] = ()
    splits_at_newlines: bool = True

    @functools.cached_property
    def is_text(self) -> np.ndarray:
        """Which ids stand for text, bool [vocab_size]."""
        return np.arange(self.vocab_size) >= FIRST

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the text, int32 [tokens], without BOS and EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of texts one after the other, int32 [tokens], and how many each has.

        >>> Bytes().encode_batch(['Ab', '', 'c'])
        ([69, 102, 103], [2, 0, 1])

        It releases the interpreter's lock while it works, so that threads do it side by side.

        Args:
            texts: at least one.

        Returns:
            The ids, and their numbers, int64 [texts].
        """
        raise NotImplementedError

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Returns the text of the ids.

        Special ids, and ids outside the vocabulary (a model's may be padded), stand for no text.
        Bytes that are not UTF-8, as at the cut end of a sample, become U+FFFD.
        """
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).reshape(-1)
        ids = ids[(ids >= 0) & (ids < self.vocab_size)]
        return self._decode(ids[self.is_text[ids]])

    def pieces(self) -> list[bytes]:
        """Returns the UTF-8 text of each id that stands for text, ascending.

        They are parts of a character where ids are bytes.
        """
        raise NotImplementedError

    def byte_ids(self) -> np.ndarray:
        """Returns the ids that are one byte each and spell what other pieces lack, int64 [bytes]."""
        return np.zeros(0, np.int64)

    def save(self, workdir: str | Path) -> Path:
        """Writes the tokenizer into a folder and returns the file; `load` reads it back."""
        path = Path(workdir) / self.file
        path.write_bytes(self.serialized())
        return path

    def _decode(self, ids: np.ndarray) -> str:
        raise NotImplementedError

    def serialized(self) -> bytes:
        raise NotImplementedError


def lengths_of(parts: Sequence[Sized]) -> np.ndarray:
    """Returns the length of each part, int64 [parts]."""
    return np.fromiter(map(len, parts), np.int64, len(parts))


class WrongSize(InputError):
    """A vocabulary that is larger, or smaller, than the training text allows.

    Attributes:
        right: the nearest size that works.
    """

    def __init__(self, vocab_size: int, right: int, needed: str = 'characters and special ids'):
        place = f'config.tokenizer.vocab_size = {vocab_size}'
        super().__init__(
            f'{place} is more than the training text allows; the largest that works is {right}.'
            if vocab_size > right
            else f'{place} is less than the {needed} of the training text need; the smallest that works '
            f'is {right}.'
        )
        self.right = right


def symbols_of(spec: TokenizerConfig) -> list[str]:
    """Returns the texts that are one token each wherever they stand."""
    return ['\n', '\t', *spec.symbols]


def sample(texts: Iterable[str], limit: int) -> list[str]:
    """Returns lines of the texts, evenly spread: every 2**k-th, the first among them.

    >>> sample(['one', 'two', 'three', 'four'], limit=11)
    ['one', 'three']

    All texts are read once, one after the other, and no more than `limit` is ever kept of them; what is
    kept depends on nothing but the texts and the limit.

    Args:
        texts: documents; lines of more than 1,000 characters are cut, and empty ones left out.
        limit: UTF-8 bytes, without ends of lines. Of a text that has more, half of it to all of it are
            returned.
    """
    return spread((line for text in texts for line in lines_of(text)), limit)


def spread(parts: Iterable[str], limit: int) -> list[str]:
    """Returns every 2**k-th of the parts, the first among them, of at most `limit` bytes; see `sample`."""
    kept, total, step = [], 0, 1
    for number, part in enumerate(parts):
        if number % step:
            continue
        kept.append(part)
        total += len(part.encode())
        while total > limit and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            total = sum(len(part.encode()) for part in kept)
    return kept


def lines_of(text: str) -> Iterator[str]:
    """Yields the lines of a text that are not empty, without their ends, cut after 1,000 characters."""
    start = 0
    while start <= len(text):
        stop = text.find('\n', start)
        stop = len(text) if stop < 0 else stop
        for begin in range(start, stop, _TRAIN_LINE):
            yield text[begin : min(begin + _TRAIN_LINE, stop)]
        start = stop + 1


def parts_of(text: str) -> Iterator[str]:
    """Yields parts, joined the text: about 4,000 characters, to the next newline if it is near."""
    start = 0
    while start < len(text):
        stop = text.find('\n', start + _PART, start + 4 * _PART) + 1 or start + 4 * _PART
        yield text[start:stop]
        start = stop
