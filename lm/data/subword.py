"""Other segmentations of words, into the pieces of the same tokenizer.

Sentencepiece samples segmentations itself, but of one generator for all threads. Here each is drawn of the
generator that is given, word by word, so that what is drawn is a function of (seed, index).

A word is a run of pieces from one that begins with a space to before the next such; what is not made of
letters alone cuts words and stays as it is: newlines and other symbols of their own, characters that are
written as bytes, special ids.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from lm.tokenizer import SentencePiece

_SPACE = '\u2581'  # What sentencepiece writes for a space.
_KEPT = 1 << 16  # Words whose segmentations are kept.
_NORMAL = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
_LONGEST = 32  # Characters of a word.


class Piece(NamedTuple):
    """A piece's id, and its score: a log probability, or for BPE less the earlier it is merged."""

    id: int
    score: float


def pieces_of(tokenizer: SentencePiece) -> dict[str, Piece]:
    """Returns the pieces that words are cut into, by their text, a space as U+2581."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.model)
    return {
        piece.piece: Piece(index, piece.score)
        for index, piece in enumerate(proto.pieces)
        if piece.type == _NORMAL
    }


class Words:
    """Cuts words into pieces, at random.

    Attributes:
        pieces: by their text, as `pieces_of` returns them.
    """

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        self.pieces = pieces
        self._texts = {piece.id: text for text, piece in pieces.items()}

    def draw(self, word: str, rng: np.random.Generator, number: float) -> list[int] | None:
        """Returns the ids of a word, or None where it cannot be written in pieces.

        Args:
            word: a space as U+2581.
            rng: numpy's.
            number: how far from the usual it goes.
        """
        raise NotImplementedError

    def resegmented(
        self, text: np.ndarray, rng: np.random.Generator, share: float, number: float
    ) -> np.ndarray:
        """Returns the ids of the same text, int32 [m], with a `share` of its words drawn anew.

        Args:
            text: int32 [n], ids.
            rng: numpy's.
            share: rate.
            number: as in `draw`.
        """
        made: list[int] = []
        for word, ids in self._words(text.tolist()):
            found = self.draw(word, rng, number) if word and rng.random() < share else None
            made += found or ids
        return np.array(made, np.int32)

    def _words(self, ids: list[int]) -> list[tuple[str, list[int]]]:
        """Returns the words and their ids; what is no part of a word has the text ''.

        Text without spaces is cut after `_LONGEST` characters: a segmentation costs their square.
        """
        found: list[tuple[str, list[int]]] = []
        goes_on = False
        for token in ids:
            text = self._texts.get(token, '')
            begins = text.startswith(_SPACE) and not (found and found[-1][0].endswith(_SPACE))
            if text and goes_on and not begins and len(found[-1][0]) < _LONGEST:
                word, before = found[-1]
                found[-1] = word + text, [*before, token]
            else:
                found.append((text, [token]))
            goes_on = bool(text)
        return found


class Unigram(Words):
    """Draws a segmentation in proportion to (the product of its pieces' probabilities) ^ alpha.

    Of all that there are (l = infinity of Kudo 2018, https://arxiv.org/abs/1804.10959, section 3.2), by
    filtering forward and sampling backward.
    """

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(pieces)
        self._longest = max(map(len, pieces), default=0)
        self._lattice = functools.lru_cache(_KEPT)(self._make_lattice)

    def draw(self, word: str, rng: np.random.Generator, number: float) -> list[int] | None:
        lattice, end, found = self._lattice(word, number), len(word), []
        while end:
            shares, starts, ids = lattice[end]
            if not starts:
                return None
            chosen = bisect.bisect(shares, rng.random())
            found.append(ids[chosen])
            end = starts[chosen]
        return found[::-1]

    def _make_lattice(
        self, word: str, alpha: float
    ) -> list[tuple[list[float], list[int], list[int]]]:
        """Returns for each end of a piece: the sums of shares but the last, the starts, and the ids."""
        total, lattice = [0.0], [([], [], [])]
        for end in range(1, len(word) + 1):
            starts, ids, logs = [], [], []
            for start in range(max(0, end - self._longest), end):
                piece = self.pieces.get(word[start:end])
                if piece is not None and total[start] > -math.inf:
                    starts.append(start)
                    ids.append(piece.id)
                    logs.append(total[start] + alpha * piece.score)
            highest = max(logs, default=0.0)
            sums = np.cumsum(np.exp(np.array(logs) - highest))
            total.append(highest + math.log(sums[-1]) if logs else -math.inf)
            lattice.append(((sums[:-1] / sums[-1:]).tolist(), starts, ids))
        return lattice


class Bpe(Words):
    """Merges a word's characters by rank, where each merge is left out at a rate, anew at each step.

    Algorithm 1 of Provilkov et al. 2020, https://arxiv.org/abs/1910.13267.
    """

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(pieces)
        self._merges = functools.lru_cache(_KEPT)(self._all_merges)

    def draw(self, word: str, rng: np.random.Generator, number: float) -> list[int] | None:
        parts = tuple(word)
        if not all(part in self.pieces for part in parts):
            return None
        while merges := self._merges(parts):
            kept = (rng.random(len(merges)) >= number).tolist()
            place = next(itertools.compress(merges, kept), None)
            if place is None:
                break
            parts = (*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :])
        return [self.pieces[part].id for part in parts]

    def _all_merges(self, parts: tuple[str, ...]) -> list[int]:
        """Returns the places of what can be merged with what follows it, the first to be merged first."""
        both = [left + right for left, right in itertools.pairwise(parts)]
        found = [place for place, pair in enumerate(both) if pair in self.pieces]
        return sorted(found, key=lambda place: -self.pieces[both[place]].score)
