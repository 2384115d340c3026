"""Say what a text, or a pair of texts, is: topic, sentiment, entailment, similarity."""

import math

import numpy as np

from lm.config import ObjectiveConfig
from lm.errors import InputError, nearest
from lm.objectives.pairs import labelled, pair
from lm.objectives.spec import Draw, Spec
from lm.vocabulary import inner

# One text int [m], or two int [m], [n]; and a class, int, or a value, float.
Example = tuple[tuple[np.ndarray, ...], int | float]


def classification(
    example: Example, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the fields of a labelled text, or of a pair such as a premise and a hypothesis.

    >>> classification((([10, 11],), 1), rng, spec)
    {'inputs': [1, 10, 11, 2], 'targets': [1, 10, 11, 2], 'loss_weights': [0., 0., 0., 0.],
     'token_types': [0, 0, 0, 0], 'labels': [1, 0, 0, 0], 'label_weights': [1., 0., 0., 0.]}

    Two texts are as in `lm.objectives.pairs.pair` (Devlin et al. 2019).

    Args:
        example: texts, of which a BOS and an EOS around them are dropped, and which lose their ends where
            they are too long; and the label.
        rng: not used; nothing here is random.
        spec: the length T is read.
        draw: not used.

    Returns:
        `inputs targets token_types labels` int32 [t], `loss_weights label_weights` float32 [t]. A label
        that is a float is `label_values`, float32, instead of `labels`.
    """
    texts, label = example
    if len(texts) == 2:
        return pair(*texts, label, spec)
    text, vocabulary = np.asarray(texts[0], np.int32), spec.vocabulary
    text = text[inner(text, vocabulary)][: spec.length - 2]
    tokens = np.concatenate([[vocabulary.bos], text, [vocabulary.eos]]).astype(np.int32)
    return {
        'inputs': tokens,
        'targets': tokens,
        'loss_weights': np.zeros(len(tokens), np.float32),
        'token_types': np.zeros(len(tokens), np.int32),
        **labelled(label, len(tokens)),
    }


def class_of(label: str, options: ObjectiveConfig) -> int:
    """Returns a label's place in `config.objective.classes`; raises InputError where it has none."""
    if label not in options.classes:
        raise InputError(
            f"'{label}' is not one of config.objective.classes = {options.classes}."
            f'{nearest(label, options.classes)}'
        )
    return options.classes.index(label)


def value_of(label: str, options: ObjectiveConfig) -> float:
    """Returns a label that is a number; raises InputError where it is none."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"'{label}' is not a number, which config.objective.name = 'similarity' learns from."
        )
    return value
