"""Predict the next token from all before it."""

import numpy as np

from lm.objectives.spec import Draw, Spec


def causal(
    tokens: np.ndarray,
    rng: np.random.Generator | None,
    spec: Spec | None = None,
    draw: Draw | None = None,
) -> dict[str, np.ndarray]:
    """Returns the fields of next-token prediction (Bengio et al. 2003; Radford et al. 2018).

    >>> causal(np.array([1, 10, 11, 2]), rng)
    {'inputs': [1, 10, 11], 'targets': [10, 11, 2], 'loss_weights': [1., 1., 1.]}

    Args:
        tokens: int [t + 1].
        rng: not used; nothing here is random.
        spec: not used.
        draw: not used.

    Returns:
        `inputs` int32 [t], `targets` int32 [t], `loss_weights` float32 [t].
    """
    tokens = np.asarray(tokens, np.int32)
    return {
        'inputs': tokens[:-1],
        'targets': tokens[1:],
        'loss_weights': np.ones(len(tokens) - 1, np.float32),
    }
