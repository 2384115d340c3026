"""What `config.data.augment` says, for the training split of a run."""

import dataclasses
from pathlib import Path

import numpy as np

from lm.config import DataConfig
from lm.data.augment import AUGMENTATIONS, KEY, Given, Step, parse
from lm.data.features import TokenizedSplit
from lm.data.subword import Bpe, Unigram, pieces_of
from lm.errors import InputError
from lm.tokenizer import SentencePiece, Tokenizer
from lm.vocabulary import Vocabulary, inner

_EMBEDDING = 'config.data.augment_embedding'
_NEAREST = 10  # Neighbours that `replace_nearest` draws from.
_COUNTED = 1 << 24  # Tokens that frequencies are of, at most.
_BLOCK = 1 << 14  # Of which so many stand side by side.
_ROWS = 1024  # Embeddings that are compared with all at once.


@dataclasses.dataclass(frozen=True)
class Augmenter:
    """What `config.data.augment` says, for one training split.

    Attributes:
        steps: what is done in turn.
        given: what it needs.
        prefix: int32 [p], ids that texts may begin with, and that stay as they are.
    """

    steps: list[Step]
    given: Given
    prefix: np.ndarray

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
        """Returns the tokens with their text augmented, int32 [at most `most`].

        Args:
            tokens: int32 [n], n at most `most`: a text, with or without a BOS before and an EOS after it.
            rng: numpy's.
            most: what is more is cut off from the text's end.
        """
        where = inner(tokens, self.given.vocabulary)
        start = where.start + _common(tokens[where], self.prefix)
        text = tokens[start : where.stop]
        if not len(text):
            return tokens
        room = most - (len(tokens) - len(text))
        for name, numbers in self.steps:
            if numbers[0]:  # At rate 0 no number is drawn either.
                text = AUGMENTATIONS[name].function(text, rng, self.given, *numbers)
        parts = tokens[:start], text[:room], tokens[where.stop :]
        return np.concatenate(parts).astype(np.int32)


def _common(tokens: np.ndarray, prefix: np.ndarray) -> int:
    """Returns how many tokens both begin with."""
    size = min(len(tokens), len(prefix))
    return int(np.cumprod(tokens[:size] == prefix[:size]).sum())


def check(data: DataConfig, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Checks that augmentations and a tokenizer go together, before any text is read.

    Raises:
        InputError: they do not, or a name or number cannot be, or `augment_embedding` is missing or not
            read.
    """
    needs = _needs(data)
    for kind in ('unigram', 'bpe'):
        if kind in needs and not (isinstance(tokenizer, SentencePiece) and tokenizer.kind == kind):
            raise InputError(
                f"{KEY}: '{needs[kind]}' needs a sentencepiece tokenizer of config.tokenizer.kind = "
                f"'{kind}', and this one is of kind '{tokenizer.kind}'."
            )
    if 'blank' in needs and _blank(tokenizer, vocabulary) < 0:
        raise InputError(
            f"{KEY}: '{needs['blank']}' writes UNK or a mask, and the tokenizer has neither: set "
            'config.tokenizer.mask = True.'
        )
    if 'neighbours' in needs and not data.augment_embedding:
        raise InputError(
            f"{KEY}: '{needs['neighbours']}' needs {_EMBEDDING}, an .npy file of embeddings [ids, width]."
        )
    if 'neighbours' not in needs and data.augment_embedding:
        raise InputError(
            f"{_EMBEDDING} = '{data.augment_embedding}' is for 'replace_nearest', which is not in {KEY}."
        )


def build(
    data: DataConfig, tokenizer: Tokenizer, vocabulary: Vocabulary, split: TokenizedSplit
) -> Augmenter:
    """Returns what augments a training split.

    Args:
        data: `augment`, `augment_embedding` and `prefix` are read.
        tokenizer: of the split.
        vocabulary: made of it.
        split: frequencies are of it.

    Raises:
        InputError: as in `check`, or the embeddings cannot be read.
    """
    check(data, tokenizer, vocabulary)
    needs = _needs(data)
    is_text = np.zeros(vocabulary.total, bool)
    is_text[vocabulary.text] = True
    made = {}
    if 'frequencies' in needs:
        made['frequencies'] = _frequencies(split.tokens, vocabulary)
    if 'neighbours' in needs:
        embedding = _read(data.augment_embedding, int(vocabulary.text.max()) + 1)
        made['neighbours'] = nearest_of(embedding, vocabulary.text)
    for kind, words in (('unigram', Unigram), ('bpe', Bpe)):
        if kind in needs:
            made['words'] = words(pieces_of(tokenizer))
    given = Given(vocabulary, is_text, _blank(tokenizer, vocabulary), **made)
    prefix = tokenizer.encode(data.prefix) if data.prefix else np.zeros(0, np.int32)
    return Augmenter(parse(data.augment), given, prefix)


def _needs(data: DataConfig) -> dict[str, str]:
    """Returns what is to be given, and the name of what needs it."""
    return {AUGMENTATIONS[name].needs: name for name, _ in parse(data.augment)}


def _blank(tokenizer: Tokenizer, vocabulary: Vocabulary) -> int:
    """Returns UNK, or the mask: where UNK also ends texts, as GPT-2's does, it would end them anywhere."""
    special = tokenizer.specials
    unknown = -1 if special.unk in (special.bos, special.eos, special.pad) else special.unk
    return vocabulary.mask if unknown < 0 else unknown


def _frequencies(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns how often each id of text stands in tokens, added up to 1, float64 [texts].

    Of many tokens some are counted, evenly spread.
    """
    starts = range(0, len(tokens), _BLOCK * -(-len(tokens) // _COUNTED))
    counts = np.zeros(vocabulary.total, np.int64)
    for start in starts:
        counts += np.bincount(tokens[start : start + _BLOCK], minlength=vocabulary.total)
    counts = counts[vocabulary.text]
    sums = np.cumsum(counts + (counts.sum() == 0), dtype=np.float64)
    return sums / sums[-1]


def _read(path: str, least: int) -> np.ndarray:
    """Returns embeddings, float32 [at least `least`, width]."""
    try:
        found = np.load(Path(path), allow_pickle=False)
        right = found.ndim == 2 and np.issubdtype(found.dtype, np.floating)
    except (OSError, ValueError, EOFError, AttributeError):
        right = False
    if not right:
        raise InputError(f"{_EMBEDDING} = '{path}' is not an .npy file of floats [ids, width].")
    if len(found) < least:
        raise InputError(f"{_EMBEDDING} = '{path}' has {len(found)} rows for {least} ids.")
    return found.astype(np.float32)


def nearest_of(embedding: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns the ids whose embeddings have the largest cosines with each one's, the nearest first.

    Args:
        embedding: float32 [rows, width].
        ids: int64 [texts], those that are compared.

    Returns:
        int32 [rows, at most 10]; of other ids than `ids` themselves.
    """
    vectors = embedding[ids]
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    most = min(_NEAREST, len(ids) - 1)
    near = np.repeat(np.arange(len(embedding), dtype=np.int32)[:, None], max(most, 1), axis=1)
    for start in range(0, len(ids), _ROWS) if most else ():
        cosines = vectors[start : start + _ROWS] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        order = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        order.sort(axis=1)  # What is as near as another comes by its id.
        best = np.argsort(-np.take_along_axis(cosines, order, 1), axis=1, kind='stable')
        near[ids[start : start + _ROWS]] = ids[np.take_along_axis(order, best, 1)]
    return near
