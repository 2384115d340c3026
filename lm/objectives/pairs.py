"""Two texts in one row, and a label: similarity, entailment, and the pairs of BERT and ALBERT."""

import numbers

import numpy as np

from lm.objectives.spec import Spec
from lm.vocabulary import Vocabulary, inner


def pair(
    first: np.ndarray, second: np.ndarray, label: int | float, spec: Spec
) -> dict[str, np.ndarray]:
    """Returns the fields of a labelled pair of texts (Devlin et al. 2019).

    >>> pair([10, 11], [12], 1, spec)
    {'inputs': [1, 10, 11, 2, 12, 2], 'targets': [1, 10, 11, 2, 12, 2],
     'loss_weights': [0., 0., 0., 0., 0., 0.], 'token_types': [0, 0, 0, 0, 1, 1],
     'labels': [1, 0, 0, 0, 0, 0], 'label_weights': [1., 0., 0., 0., 0., 0.]}

    Args:
        first: int [m]; a BOS and an EOS around it are dropped, as of the second.
        second: int [n]. While both are more than T - 3 tokens, the longer loses its last one.
        label: a class, int; or a value to be regressed on, float, which makes `label_values`
            float32 [t] in the place of `labels`.
        spec: the length T is read.

    Returns:
        `inputs targets token_types labels` int32 [t], `loss_weights label_weights` float32 [t].
    """
    first, second = (np.asarray(text, np.int32) for text in (first, second))
    first, second = (text[inner(text, spec.vocabulary)] for text in (first, second))
    room = spec.length - 3
    first = first[: max(room - len(second), room - room // 2)]
    second = second[: room - len(first)]
    tokens, token_types = joined(first, second, spec.vocabulary)
    return {
        'inputs': tokens,
        'targets': tokens,
        'loss_weights': np.zeros(len(tokens), np.float32),
        'token_types': token_types,
        **labelled(label, len(tokens)),
    }


def joined(
    first: np.ndarray, second: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Returns BOS, a text, EOS, another, EOS; and which of the texts each token is of; int32 [t].

    >>> joined([10, 11], [12], vocabulary)
    ([1, 10, 11, 2, 12, 2], [0, 0, 0, 0, 1, 1])
    """
    bos, eos = [vocabulary.bos], [vocabulary.eos]
    tokens = np.concatenate([bos, first, eos, second, eos]).astype(np.int32)
    return tokens, (np.arange(len(tokens)) >= len(first) + 2).astype(np.int32)


def labelled(label: int | float | None, size: int) -> dict[str, np.ndarray]:
    """Returns the fields of a label, which stands at the first of `size` tokens; None has weight 0.

    >>> labelled(2, 3), labelled(0.5, 3)
    ({'labels': [2, 0, 0], 'label_weights': [1., 0., 0.]},
     {'label_values': [0.5, 0., 0.], 'label_weights': [1., 0., 0.]})
    """
    whole = label is None or isinstance(label, numbers.Integral)
    values = np.zeros(size, np.int32 if whole else np.float32)
    weights = np.zeros(size, np.float32)
    values[0], weights[0] = label or 0, label is not None
    return {'labels' if whole else 'label_values': values, 'label_weights': weights}
