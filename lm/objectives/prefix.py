"""Go on from a prefix that sees itself in both directions."""

import numpy as np

from lm.objectives.causal import causal
from lm.objectives.spec import Draw, Spec


def prefix(
    tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the fields of a prefix language model (Liu et al. 2018; Raffel et al. 2020).

    The prefix has 1 to t of the t inputs, all as likely. Its last token predicts the first that it
    does not hold. For a decoder with the mask `causal | prefix`.

    >>> prefix([1, 10, 11, 12, 2], np.random.default_rng(1), spec)
    {'inputs': [1, 10, 11, 12], 'targets': [10, 11, 12, 2], 'loss_weights': [0., 1., 1., 1.],
     'in_prefix': [True, True, False, False]}

    Args:
        tokens: int [t + 1].
        rng: of the prefix's length.
        spec: not used.
        draw: not used.

    Returns:
        `inputs targets` int32 [t], `loss_weights` float32 [t], `in_prefix` bool [t].
    """
    fields = causal(tokens, rng)
    place = np.arange(len(fields['targets']))
    size = rng.integers(1, len(place) + 1)
    weights = (place >= size - 1).astype(np.float32)
    return fields | {'loss_weights': weights, 'in_prefix': place < size}
