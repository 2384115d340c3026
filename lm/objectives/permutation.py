"""Predict the last tokens of a random order, each from those before it in that order."""

import numpy as np

from lm.objectives.spans import places
from lm.objectives.spec import Draw, Spec
from lm.vocabulary import inner


def permutation(
    tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the fields of permutation language modelling (Yang et al. 2019).

    One token in K = `partial` is predicted: the text is cut into contexts of K * L tokens, L uniform up to
    `max_span`, and L neighbours are predicted anywhere in each; at least one token in all. `order`
    ranks the predicted tokens from 1 on; others have rank 0, are seen by all, and predict nothing. A
    token of rank r may be predicted from those of rank < r, so BOS and EOS have rank 0.

    >>> permutation([1, 10, 11, 12, 13, 2], np.random.default_rng(2), spec)  # partial 2, max_span 2
    {'inputs': [1, 10, 11, 12, 13, 2], 'targets': [1, 10, 11, 12, 13, 2],
     'loss_weights': [0., 1., 1., 0., 0., 0.], 'order': [0, 1, 2, 0, 0, 0]}

    Args:
        tokens: int [t].
        rng: of the spans, the order and the direction.
        spec: `partial`, `max_span` and `bidirectional` are read: with it half of the texts are
            turned around between their BOS and EOS.
        draw: not used.

    Returns:
        `inputs targets order` int32 [t], `loss_weights` float32 [t]; `targets` is `inputs`.
    """
    tokens = np.array(tokens, np.int32)
    text = inner(tokens, spec.vocabulary)
    if spec.options.bidirectional and rng.random() < 0.5:
        tokens[text] = tokens[text][::-1].copy()
    predicted = text.start + _predicted(text.stop - text.start, rng, spec)
    order, weights = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.float32)
    order[predicted] = 1 + rng.permutation(len(predicted))
    weights[predicted] = 1
    return {'inputs': tokens, 'targets': tokens, 'loss_weights': weights, 'order': order}


def _predicted(size: int, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    """Returns the places of predicted tokens in a text of `size`; exactly 1 / K are on average."""
    one_in = spec.options.partial
    lengths = rng.integers(1, spec.options.max_span + 1, size // one_in + 1)
    ends = np.minimum(np.cumsum(one_in * lengths), size)
    contexts = np.diff(ends, prepend=0)
    # L of a whole context; of the last, which the text may cut, as many on average.
    lengths = (contexts / one_in + rng.random(len(contexts))).astype(int)
    starts = ends - contexts + rng.integers(0, contexts - lengths + 1)
    found = places(starts, lengths)
    return found if len(found) or not size else rng.integers(size, size=1)
