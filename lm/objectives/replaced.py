"""Say which tokens a small model made up."""

import dataclasses

import numpy as np

from lm.objectives.masked import masked
from lm.objectives.spec import Draw, Spec


def replaced(
    tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the host's fields of replaced token detection (Clark et al. 2020).

    These are the generator's: as `masked` of one text, and what is chosen always becomes the mask. On
    the device the generator fills the masks, and the discriminator says for each token whether it is
    that of `targets`. Where there is no generator (`generator_size` 0), what is chosen becomes a random
    token of text.

    >>> replaced([1, 10, 11, 12, 13, 2], np.random.default_rng(2), spec)  # rate 0.5, mask 20
    {'inputs': [1, 10, 20, 20, 13, 2], 'targets': [1, 10, 11, 12, 13, 2],
     'loss_weights': [0., 0., 1., 1., 0., 0.]}

    Args:
        tokens: int [t].
        rng: of what is chosen.
        spec: with a mask; `rate`, `unit`, `span`, `max_span`, `max_predictions` and `generator_size` are
            read.
        draw: not used.

    Returns:
        `inputs targets` int32 [t], `loss_weights` float32 [t].
    """
    drawn = 0.0 if spec.options.generator_size else 1.0
    plain = dataclasses.replace(spec.options, random_rate=drawn, keep_rate=0.0, pairs='')
    return masked(tokens, rng, dataclasses.replace(spec, options=plain))
