"""What an objective is told besides the tokens."""

import dataclasses
from collections.abc import Callable

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
