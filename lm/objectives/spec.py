"""What an objective is told besides the tokens, and how what it trained is given a text."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lm.config import ObjectiveConfig
from lm.vocabulary import Vocabulary

# (rng, n) -> at most n tokens of a window of a random other document, int [<= n].
Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an objective is told besides the tokens.

    Attributes:
        options: the config.
        vocabulary: the ids.
        length: T, the most tokens of `inputs` and `targets`.
        source_length: S, the most tokens of `encoder_inputs`.
    """

    options: ObjectiveConfig
    vocabulary: Vocabulary
    length: int
    source_length: int


class Prompt(NamedTuple):
    """How an encoder-decoder is given a text, to write what belongs to it.

    Attributes:
        before: what the source begins with.
        after: what it ends with.
        begun: what is there of the target.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    begun: tuple[int, ...]


def prompt(spec: Spec) -> Prompt:
    """Returns how a whole text is given.

    >>> prompt(spec)
    Prompt(before=(1,), after=(2,), begun=(1,))
    """
    bos, eos = spec.vocabulary.bos, spec.vocabulary.eos
    return Prompt((bos,), (eos,), (bos,))
