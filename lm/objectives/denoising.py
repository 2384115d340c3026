"""Write a text from what noise has left of it."""

import numpy as np

from lm.errors import lookup
from lm.objectives.seq2seq import written
from lm.objectives.spans import fill, place, replace
from lm.objectives.spec import Draw, Spec
from lm.vocabulary import inner, permuted, rotated


def denoising(
    tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the fields of denoising (Lewis et al. 2020).

    The kinds of `noise` are done to the text in turn; BOS and EOS stay in the source where the window has
    them. Of m tokens, k = round(rate * m) are concerned:

    - mask: k random ones become the mask;
    - delete: k random ones go;
    - infill: spans of k tokens in all, of lengths by Poisson with mean `span`, become one mask each.
      One of length 0 is a mask where nothing is missing; of those only so many are kept that the text
      does not grow.
    - permute: its sentences change places;
    - rotate: it begins at a random token, and what stood before that follows its end.

    >>> denoising([1, 10, 11, 12, 13, 14, 15, 2], np.random.default_rng(2), spec)
    ... # noise 'infill', rate 0.5, mask 20
    {'inputs': [1, 10, 11, 12, 13, 14, 15], 'targets': [10, 11, 12, 13, 14, 15, 2],
     'loss_weights': [1., 1., 1., 1., 1., 1., 1.], 'encoder_inputs': [1, 10, 11, 20, 15, 2]}

    Args:
        tokens: int [n].
        rng: of the noise.
        spec: with a mask; `noise`, `rate` and `span` are read.
        draw: not used.

    Returns:
        `inputs targets` int32 [t], `loss_weights` float32 [t], `encoder_inputs` int32 [s]; t is the
        text's length and 1, s is n at most.
    """
    tokens = np.asarray(tokens, np.int32)
    where = inner(tokens, spec.vocabulary)
    text = noisy = tokens[where]
    for kind in spec.options.noise:
        noisy = lookup(NOISES, kind, 'config.objective.noise')(noisy, rng, spec)
    source = np.concatenate([tokens[: where.start], noisy, tokens[where.stop :]])
    return written(text, spec.vocabulary) | {'encoder_inputs': source.astype(np.int32)}


def _mask(text: np.ndarray, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    text = text.copy()
    text[_choose(text, rng, spec)] = spec.vocabulary.mask
    return text


def _delete(text: np.ndarray, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    return np.delete(text, _choose(text, rng, spec))


def _choose(text: np.ndarray, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    return rng.choice(len(text), round(spec.options.rate * len(text)), replace=False)


def _infill(text: np.ndarray, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    number = round(spec.options.rate * len(text))
    lengths = fill(rng.poisson(spec.options.span, 2 * number + 10), number)
    gone = int(lengths.sum())
    lengths = rng.permutation(np.sort(lengths)[::-1][:gone])
    starts = place(lengths, len(text) - gone, 0, rng)
    return replace(text, starts, lengths, spec.vocabulary.mask)


def _permute(text: np.ndarray, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    return permuted(text, rng, spec.vocabulary)


def _rotate(text: np.ndarray, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    return rotated(text, rng)


# Kind of noise -> the function of (text int32 [m], rng, spec) that returns int32 [at most m].
NOISES = {
    'mask': _mask,
    'delete': _delete,
    'infill': _infill,
    'permute': _permute,
    'rotate': _rotate,
}
