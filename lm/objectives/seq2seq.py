"""Write the target of a source, as in translation and summarisation."""

import numpy as np

from lm.objectives.spec import Draw, Spec
from lm.vocabulary import Vocabulary, inner


def seq2seq(
    pair: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    spec: Spec,
    draw: Draw | None = None,
) -> dict[str, np.ndarray]:
    """Returns the fields of a target to be written from its source (Sutskever et al. 2014).

    >>> seq2seq(([10, 11], [20, 21, 22]), rng, spec)
    {'inputs': [1, 20, 21, 22], 'targets': [20, 21, 22, 2], 'loss_weights': [1., 1., 1., 1.],
     'encoder_inputs': [10, 11, 2]}

    Args:
        pair: (source int [m], target int [n]), and not one window as for other objectives; a BOS and
            an EOS around them are dropped. Too long ones lose their ends: S - 1 tokens of the source
            (fewer by those that a published tokenizer puts before it) and T - 1 of the target are kept.
        rng: not used; nothing here is random.
        spec: the lengths are read.
        draw: not used.

    Returns:
        `inputs targets` int32 [t], `loss_weights` float32 [t], `encoder_inputs` int32 [s].
    """
    source, target = (np.asarray(text, np.int32) for text in pair)
    vocabulary = spec.vocabulary
    source, target = (text[inner(text, vocabulary)] for text in (source, target))
    before = np.array(vocabulary.before, np.int32)
    source = np.concatenate([before, source[: spec.source_length - 1 - len(before)]])
    fields = written(target[: spec.length - 1], vocabulary)
    return fields | {'encoder_inputs': _end(source, vocabulary)}


def written(text: np.ndarray, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Returns the fields of a decoder that writes a text and EOS, each token from those before it."""
    targets = _end(text, vocabulary)
    inputs = np.concatenate([[vocabulary.bos], targets[:-1]]).astype(np.int32)
    weights = np.ones(len(targets), np.float32)
    return {'inputs': inputs, 'targets': targets, 'loss_weights': weights}


def _end(text: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    return np.concatenate([text, [vocabulary.eos]]).astype(np.int32)
