"""Find the other text of a pair among those of a batch."""

import numpy as np

from lm.objectives.pairs import labelled
from lm.objectives.spec import Draw, Spec
from lm.vocabulary import inner


def contrastive(
    pair: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    spec: Spec,
    draw: Draw | None = None,
) -> dict[str, np.ndarray]:
    """Returns the fields of two texts that mean the same (Henderson et al. 2017; Gao et al. 2021).

    They stand in one row, and do not see each other: `token_types` says which is which.

    >>> contrastive(([10, 11], [12]), rng, spec)
    {'inputs': [1, 10, 11, 2, 1, 12, 2], 'targets': [1, 10, 11, 2, 1, 12, 2],
     'loss_weights': [0., 0., 0., 0., 0., 0., 0.], 'token_types': [0, 0, 0, 0, 1, 1, 1],
     'labels': [0, 0, 0, 0, 0, 0, 0], 'label_weights': [1., 0., 0., 0., 0., 0., 0.]}

    Args:
        pair: int [m] and int [n]; a BOS and an EOS around them are dropped. Each loses its end where it
            is more than half of T.
        rng: not used; nothing here is random.
        spec: the length T is read.
        draw: not used.

    Returns:
        `inputs targets token_types labels` int32 [t], `loss_weights label_weights` float32 [t].
    """
    texts = [np.asarray(text, np.int32) for text in pair]
    vocabulary, most = spec.vocabulary, spec.length // 2 - 2
    bos, eos = [vocabulary.bos], [vocabulary.eos]
    parts = [[bos, text[inner(text, vocabulary)][:most], eos] for text in texts]
    first, second = (np.concatenate(part).astype(np.int32) for part in parts)
    tokens = np.concatenate([first, second])
    return {
        'inputs': tokens,
        'targets': tokens,
        'loss_weights': np.zeros(len(tokens), np.float32),
        'token_types': (np.arange(len(tokens)) >= len(first)).astype(np.int32),
        **labelled(0, len(tokens)),
    }
