"""Augmentations of training text: each makes another text of one, at random.

`config.data.augment` names them with their numbers, and they are done in turn:
`('swap 0.1', 'insert 0.05')`. Text becomes another each time that it is read, by the generator of its row,
so that batch i is a function of (seed, i) with them as without. Evaluation never has them.

They see ids. Those that stand for no text are neither replaced nor taken out, and none is put in but by
`drop`: BOS and EOS stay where they are, and an UNK within a text moves with what is around it. A
`config.data.prefix` stays too, and codes (`lm.codes`) come later. Rates are parts of the text's tokens
unless said otherwise; so many are chosen, rounded up or down at random.

What is augmented, of what the objective learns from: a window's text; of labelled texts and pairs each
text, and never the label; of `seq2seq` the source and never the target, which is what is to be learnt.
A model that learns from a window learns the augmented text itself, its targets too: a causal model's loss
is that of the new text, and not, as where noise is put on inputs only, that of the old one from noise.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lm.data.subword import Words
from lm.errors import InputError, lookup
from lm.vocabulary import Vocabulary, permuted, rotated

KEY = 'config.data.augment'


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What augmentations know besides the text.

    Attributes:
        vocabulary: the ids.
        is_text: which ids stand for text, bool [ids].
        blank: what `drop` writes.
        frequencies: float64 [texts], of the ids in `vocabulary.text`, added up to 1; or None.
        neighbours: int32 [ids, k], the nearest of each id that stands for text; or None.
        words: what cuts words into pieces; or None.
    """

    vocabulary: Vocabulary
    is_text: np.ndarray
    blank: int = -1
    frequencies: np.ndarray | None = None
    neighbours: np.ndarray | None = None
    words: Words | None = None


# --- tokens replaced: (text int32 [n], rng, given, number...) -> int32 [m] ---------------------------


def replace(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Puts random ids, all alike likely, in the place of tokens (Wang et al. 2018, SwitchOut).

    https://arxiv.org/abs/1808.07512; their number is drawn there, and is a rate here.

    >>> replace([10, 11, 12, 13, 14, 15], rng, given, 0.3)
    [10, 4, 5, 13, 14, 15]
    """
    text, places = text.copy(), _chosen(text, rng, given, rate)
    text[places] = rng.choice(given.vocabulary.text, len(places))
    return text


def replace_unigram(
    text: np.ndarray, rng: np.random.Generator, given: Given, rate: float
) -> np.ndarray:
    """Puts random ids, as likely as in the training text, in the place of tokens.

    Unigram noising (Xie et al. 2017, https://arxiv.org/abs/1703.02573).

    >>> replace_unigram([10, 11, 12, 13, 14, 15], rng, given, 0.3)
    [10, 9, 9, 13, 14, 15]
    """
    text, places = text.copy(), _chosen(text, rng, given, rate)
    drawn = np.searchsorted(given.frequencies, rng.random(len(places)), side='right')
    text[places] = given.vocabulary.text[drawn]
    return text


def replace_nearest(
    text: np.ndarray, rng: np.random.Generator, given: Given, rate: float
) -> np.ndarray:
    """Puts one of the ten ids of nearest embeddings, by cosine, in the place of tokens.

    After Wang and Yang 2015 (https://aclanthology.org/D15-1306). The embeddings are those of
    `config.data.augment_embedding`.

    >>> replace_nearest([10, 11, 12, 13, 14, 15], rng, given, 0.3)
    [10, 10, 13, 13, 14, 15]
    """
    text, places = text.copy(), _chosen(text, rng, given, rate)
    near = given.neighbours[text[places]]
    text[places] = near[np.arange(len(places)), rng.integers(near.shape[1], size=len(places))]
    return text


def drop(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Puts UNK (a mask, where the tokenizer has none) in the place of tokens.

    Word dropout (Bowman et al. 2016, https://arxiv.org/abs/1511.06349; blank noising of Xie et al. 2017),
    which they do to a decoder's inputs only. A causal model here learns to write UNK so often.

    >>> drop([10, 11, 12, 13, 14, 15], rng, given, 0.3)
    [10, 3, 3, 13, 14, 15]
    """
    text = text.copy()
    text[_chosen(text, rng, given, rate)] = given.blank
    return text


# --- tokens put in or left out ------------------------------------------------------------------------


def insert(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Puts copies of random tokens of the text anywhere in it.

    Random insertion of EDA (Wei and Zou 2019, https://arxiv.org/abs/1901.11196), which takes synonyms of
    them.

    >>> insert([10, 11, 12, 13, 14, 15], rng, given, 0.3)
    [12, 11, 10, 11, 12, 13, 14, 15]
    """
    copies = text[_chosen(text, rng, given, rate)]
    places = rng.integers(len(text) + 1, size=len(copies))
    return np.insert(text, places, rng.permutation(copies))


def delete(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Leaves tokens out, but never all (EDA, Wei and Zou 2019).

    >>> delete([10, 11, 12, 13, 14, 15], rng, given, 0.3)
    [10, 13, 14, 15]
    """
    return np.delete(text, _chosen(text, rng, given, rate)[: len(text) - 1])


# --- tokens moved -------------------------------------------------------------------------------------


def swap(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Has tokens change places with their neighbours; a token moves by one place at most.

    Artetxe et al. 2018 (https://arxiv.org/abs/1710.11041), who do half as many swaps as there are tokens,
    which is rate 1. (EDA swaps tokens that may be far apart.)

    >>> swap([10, 11, 12, 13, 14, 15], rng, given, 0.3)
    [10, 11, 13, 12, 14, 15]
    """
    text, count = text.copy(), _count(rate * len(text) / 2, len(text) // 2, rng)
    # With its second token put aside, each pair is one of the things that are left.
    first = np.sort(rng.choice(len(text) - count, count, replace=False)) + np.arange(count)
    text[first], text[first + 1] = text[first + 1], text[first]
    return text


def shuffle(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Moves spans of 1 to 5 tokens behind up to 3 that follow; the rate is the part of spans.

    The local permutation of Lample et al. 2018 (https://arxiv.org/abs/1711.00043), of spans in place of
    words.

    >>> shuffle([10, 11, 12, 13, 14, 15, 16, 17, 18], rng, given, 0.9)
    [15, 16, 17, 18, 10, 11, 12, 13, 14]
    """
    ends = np.cumsum(rng.integers(1, 6, size=len(text)))
    spans = np.split(text, ends[ends < len(text)])
    farther = rng.uniform(0, 4, len(spans)) * (rng.random(len(spans)) < rate)
    order = np.argsort(np.arange(len(spans)) + farther, kind='stable')
    return np.concatenate([spans[i] for i in order])


def permute(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Brings the sentences into a random order (BART, https://arxiv.org/abs/1910.13461).

    The rate is the part of texts. Here 12 ends a sentence:

    >>> permute([10, 12, 13, 14, 12, 15, 16], rng, given, 1.0)
    [15, 16, 10, 12, 13, 14, 12]
    """
    return permuted(text, rng, given.vocabulary) if rng.random() < rate else text


def rotate(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Lets a text begin at a random token, and go on with its start (BART).

    https://arxiv.org/abs/1910.13461; the rate is the part of texts.

    >>> rotate([10, 11, 12, 13, 14, 15], rng, given, 1.0)
    [13, 14, 15, 10, 11, 12]
    """
    return rotated(text, rng) if rng.random() < rate else text


# --- words cut otherwise ------------------------------------------------------------------------------


def subword(
    text: np.ndarray, rng: np.random.Generator, given: Given, rate: float, alpha: float
) -> np.ndarray:
    """Draws other segmentations of words (subword regularisation, Kudo 2018).

    https://arxiv.org/abs/1804.10959, which takes alpha 0.1 to 0.5 and rate 1. The rate is the part of
    words; of theirs a segmentation is drawn by its probability to the power alpha. Here 10 is `a`, 11 is
    `b` and 12 is `ab`, as likely as both after each other:

    >>> subword([12, 13, 12, 13, 12], rng, given, 0.9, 0.5)
    [12, 13, 12, 13, 10, 11]
    """
    return given.words.resegmented(text, rng, rate, alpha)


def bpe_dropout(
    text: np.ndarray, rng: np.random.Generator, given: Given, rate: float
) -> np.ndarray:
    """Merges each word anew, where each merge is left out at this rate (Provilkov et al. 2020).

    https://arxiv.org/abs/1910.13267, which takes 0.1. With the pieces of `subword`:

    >>> bpe_dropout([12, 13, 12, 13, 12], rng, given, 0.5)
    [10, 11, 13, 10, 11, 13, 12]
    """
    return given.words.resegmented(text, rng, 1.0, rate)


def _chosen(text: np.ndarray, rng: np.random.Generator, given: Given, rate: float) -> np.ndarray:
    """Returns the places of a part of the tokens that stand for text, int64 [chosen], in random order."""
    places = np.flatnonzero(given.is_text[text])
    return rng.choice(places, _count(rate * len(places), len(places), rng), replace=False)


def _count(expected: float, most: int, rng: np.random.Generator) -> int:
    """Returns a number that is so large on average, rounded up or down."""
    return min(int(expected + rng.random()), most)


# --- the table ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An entry of the table.

    Attributes:
        function: (text int32 [n], rng, given, number...) -> int32 [m], n at least 1.
        needs: of 'blank', 'frequencies', 'neighbours', 'unigram' and 'bpe', what is to be given.
        growth: number... -> the tokens that room is kept for, for each of the text's. What is beyond
            them is cut off at the end.
        numbers: what is written after the name: rates, and what is more than 0.
    """

    function: Callable[..., np.ndarray]
    needs: str = ''
    growth: Callable[..., float] = lambda rate: 1.0
    numbers: tuple[str, ...] = ('RATE',)


AUGMENTATIONS: dict[str, Augmentation] = {
    'replace': Augmentation(replace),
    'replace_unigram': Augmentation(replace_unigram, 'frequencies'),
    'replace_nearest': Augmentation(replace_nearest, 'neighbours'),
    'drop': Augmentation(drop, 'blank'),
    'insert': Augmentation(insert, growth=lambda rate: 1 + rate),
    'delete': Augmentation(delete),
    'swap': Augmentation(swap),
    'shuffle': Augmentation(shuffle),
    'permute': Augmentation(permute),
    'rotate': Augmentation(rotate),
    # As much as English grows in 1,024 and 4,096 pieces, and a little more.
    'subword': Augmentation(
        subword,
        'unigram',
        lambda rate, alpha: 1 + rate * min(1, 0.1 / alpha),
        ('RATE', 'ALPHA'),
    ),
    'bpe_dropout': Augmentation(bpe_dropout, 'bpe', lambda rate: 1 + 2 * rate),
}


class Step(NamedTuple):
    """An augmentation and its numbers."""

    name: str
    numbers: tuple[float, ...]


def parse(texts: tuple[str, ...]) -> list[Step]:
    """Returns what is done in turn.

    >>> parse(('swap 0.1', 'subword 0.5 0.2'))
    [Step(name='swap', numbers=(0.1,)), Step(name='subword', numbers=(0.5, 0.2))]

    Raises:
        InputError: a name is unknown, or a number is missing or cannot be.
    """
    return [*map(_step, texts)]


def _step(text: str) -> Step:
    name, *words = text.split() or ['']
    entry = lookup(AUGMENTATIONS, name, KEY)
    try:
        rate, *others = numbers = tuple(map(float, words))
        right = len(numbers) == len(entry.numbers) and all(map(math.isfinite, numbers))
    except ValueError:
        right = False
    if not right:
        raise InputError(
            f"{KEY}: '{text}' must be '{' '.join([name, *entry.numbers])}', in numbers."
        )
    if not 0 <= rate <= 1:
        raise InputError(f"{KEY}: '{text}' has a rate of {rate:g}; it is between 0 and 1.")
    if not all(number > 0 for number in others):
        raise InputError(f"{KEY}: '{text}' has a number of {min(others):g}; it must be above 0.")
    return Step(name, numbers)


def growth(texts: tuple[str, ...]) -> float:
    """Returns the tokens that room is kept for, for each token of text."""
    return math.prod(AUGMENTATIONS[name].growth(*numbers) for name, numbers in parse(texts))
