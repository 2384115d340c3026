"""The corpora of one stream of training, as `config.data.corpora` names them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lm.errors import InputError, nearest


class Corpus(NamedTuple):
    """One of them.

    Attributes:
        source: as `config.data.train` has it.
        weight: at the first step, at least 0.
        final_weight: at the last step.
        epochs: the most times that each row of it is seen; 0 = no limit.
    """

    source: str
    weight: float
    final_weight: float
    epochs: float


def parse(values: Mapping[str, Any], place: str) -> dict[str, Corpus]:
    """Returns the corpora by name, in the order of the names.

    >>> parse({'web': {'source': 'text:web.txt'}}, 'config.data.corpora')
    {'web': Corpus(source='text:web.txt', weight=1.0, final_weight=1.0, epochs=0.0)}

    Args:
        values: what is given of each; a weight is 1, the last one the first, where none is.
        place: where that stands, such as `config.data.corpora`.

    Raises:
        InputError: a name, key or value cannot be, or all weights are 0 at the first or last step.
    """
    found = {name: _corpus(name, given, place) for name, given in sorted(values.items())}
    for key in ('weight', 'final_weight'):
        if found and not any(getattr(corpus, key) for corpus in found.values()):
            raise InputError(f'{place}: all are of {key} = 0; at least one must be learnt.')
    return found


def _corpus(name: str, given: Any, place: str) -> Corpus:
    place = f'{place}.{name}'
    if not str(name).isidentifier() or not isinstance(given, Mapping):
        raise InputError(
            f'{place} must have a name of letters, digits and _, and hold some of: '
            f'{", ".join(Corpus._fields)}.'
        )
    for key, value in given.items():
        if key not in Corpus._fields:
            raise InputError(
                f'{place}.{key} is not a key of a corpus.{nearest(key, Corpus._fields)}'
            )
        if key == 'source':
            fits, wanted = isinstance(value, str) and value, "a source, such as 'text:web/*.txt'"
        else:
            fits = type(value) in (int, float) and 0 <= value < math.inf
            wanted = 'a number, at least 0'
        if not fits:
            raise InputError(f'{place}.{key} = {value!r} must be {wanted}.')
    if 'source' not in given:
        raise InputError(f"{place}.source is missing: give a source, such as 'text:web/*.txt'.")
    weight = float(given.get('weight', 1.0))
    last = float(given.get('final_weight', weight))
    return Corpus(given['source'], weight, last, float(given.get('epochs', 0.0)))
