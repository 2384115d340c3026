"""The ids of a tokenizer and those that objectives add, and where words and sentences end."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lm import codes
from lm.config import TokenizerConfig
from lm.errors import InputError
from lm.tokenizer import Tokenizer
from lm.words_tokenizer import goes_on

# The first bytes of most of them in UTF-8, 0xE3 to 0xE9, as `surrogateescape` has them.
_CHINESE_BYTES = tuple(map(chr, range(0xDCE3, 0xDCEA)))
_SENTENCE_ENDS = ('.', '!', '?', '。', '．', '｡', '！', '？')


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ids of a tokenizer and those that objectives add, and where words and sentences end.

    A word is a run of letters, marks and digits of any script; all else, and each Chinese or
    Japanese character, is a word of its own. So it means the same for every kind of tokenizer, but that
    no word starts inside of a token:

    >>> build(tokenizer, spec).word_starts(tokenizer.encode('the cats, 一日'))  # the cat s , ' ' 一 日
    [True, True, False, True, True, True, True]

    Attributes:
        size: ids of the tokenizer.
        bos: begins a document, and what a decoder writes.
        eos: ends it.
        text: the ids that stand for text, int64 [texts], ascending.
        mask: the id that hides a token; -1 for none.
        sentinels: the ids that stand for spans, in the order of their use.
        codes: the ids of control codes, by name; see `lm.codes`.
        before: the ids that stand before a source: those of a published tokenizer that has such.
        starts_word: bool [total], whatever stands before it.
        ends_word: bool [total], what stands after it starts a word.
        ends_sentence: bool [total], ends with . ! ? or their Chinese forms, or contains a newline. (The
            Chinese forms are several tokens where ids are bytes, and are not seen there.)
        total: all ids; the rows of the model's table.
    """

    size: int
    bos: int
    eos: int
    text: np.ndarray
    mask: int
    sentinels: tuple[int, ...]
    starts_word: np.ndarray
    ends_word: np.ndarray
    ends_sentence: np.ndarray
    total: int
    codes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    before: tuple[int, ...] = ()

    def word_starts(self, tokens: np.ndarray) -> np.ndarray:
        """Returns which tokens start a word, bool [n]; the first does."""
        starts = self.starts_word[tokens]
        starts[1:] |= self.ends_word[tokens[:-1]]
        starts[:1] = True
        return starts


def build(tokenizer: Tokenizer, spec: TokenizerConfig) -> Vocabulary:
    """Returns the vocabulary: the tokenizer's ids, then the mask's, the sentinels', the codes'.

    A tokenizer that has a mask or sentinels of its own gets no others.

    Args:
        tokenizer: any kind.
        spec: `mask`, `sentinels`, `codes` and `begin_sources` are read.

    Raises:
        InputError: a code has a form that cannot be, or stands twice; or the tokenizer has fewer sentinels
            of its own than are asked for.
    """
    codes.check(spec.codes)
    mask, sentinels, first_code = _hiding(tokenizer, spec)
    total = first_code + len(spec.codes)
    # A byte that is part of a character becomes one of U+DC80 to U+DCFF.
    pieces = [piece.decode(errors='surrogateescape') for piece in tokenizer.pieces()]
    # Special ids, masks, sentinels and codes are words by themselves.
    starts_word, ends_word = np.ones(total, bool), np.ones(total, bool)
    ends_sentence = np.zeros(total, bool)
    text = np.flatnonzero(tokenizer.is_text)
    starts_word[text] = [_alone(piece[:1]) or piece[:1] in _CHINESE_BYTES for piece in pieces]
    ends_word[text] = [_alone(piece[-1:]) for piece in pieces]
    ends_sentence[text] = [piece.endswith(_SENTENCE_ENDS) or '\n' in piece for piece in pieces]
    return Vocabulary(
        size=tokenizer.vocab_size,
        bos=tokenizer.specials.bos,
        eos=tokenizer.specials.eos,
        text=text,
        mask=mask,
        sentinels=sentinels,
        starts_word=starts_word,
        ends_word=ends_word,
        ends_sentence=ends_sentence,
        total=total,
        codes=code_ids(tokenizer, spec),
        before=tokenizer.before if spec.begin_sources else (),
    )


def inner(tokens: np.ndarray, vocabulary: Vocabulary) -> slice:
    """Returns where a window's text is: all but a BOS at the start and an EOS at the end.

    >>> inner([1, 10, 11, 2], vocabulary), inner([10, 11], vocabulary)
    (slice(1, 3), slice(0, 2))
    """
    size = len(tokens)
    start = int(size > 0 and tokens[0] == vocabulary.bos)
    return slice(start, size - int(size > start and tokens[-1] == vocabulary.eos))


def permuted(text: np.ndarray, rng: np.random.Generator, vocabulary: Vocabulary) -> np.ndarray:
    """Returns the sentences of a text in a random order (Lewis et al. 2020, BART)."""
    sentences = np.split(text, np.flatnonzero(vocabulary.ends_sentence[text[:-1]]) + 1)
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


def rotated(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a text from a random token on, and then what stood before that (Lewis et al. 2020)."""
    return np.roll(text, -rng.integers(max(1, len(text))))


def code_ids(tokenizer: Tokenizer, spec: TokenizerConfig) -> dict[str, int]:
    """Returns the ids of the control codes, by name."""
    first = _hiding(tokenizer, spec)[-1]
    return {name: first + i for i, name in enumerate(spec.codes)}


def _hiding(tokenizer: Tokenizer, spec: TokenizerConfig) -> tuple[int, tuple[int, ...], int]:
    """Returns the mask, the sentinels, and the first id after them and the tokenizer's."""
    free, own = tokenizer.vocab_size, tokenizer.specials
    mask, sentinels = own.mask, own.sentinels
    if mask < 0 and spec.mask:
        mask, free = free, free + 1
    if not sentinels:
        return mask, tuple(range(free, free + spec.sentinels)), free + spec.sentinels
    if len(sentinels) < spec.sentinels:
        raise InputError(
            f'config.tokenizer.sentinels = {spec.sentinels} is more than the {len(sentinels)} that the '
            'tokenizer has of its own; 0 takes them all.'
        )
    return mask, sentinels[: spec.sentinels or None], free


def _alone(character: str) -> bool:
    """Is the character no part of a longer word? Parts of a character always are."""
    point = ord(character or ' ')
    if 0xDC80 <= point <= 0xDCFF:
        return False
    return not goes_on(point)
