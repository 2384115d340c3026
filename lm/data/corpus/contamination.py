"""Documents that hold what models will be evaluated on: 13 words in a row (Brown et al. 2020, appendix C).

A text of fewer words must occur as a whole, and one of fewer than `shortest` cannot be looked for: such
words occur anywhere.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.data.corpus import words
from lm.data.corpus.options import Contamination


class Index(NamedTuple):
    """What is looked for.

    Attributes:
        names: of the evaluation sets.
        hashes: by the number of words in a row, uint64, sorted.
        sets: of each hash the number of its set.
        texts: of each set, texts that can be looked for, and texts that are too short.
    """

    names: list[str]
    hashes: dict[int, np.ndarray]
    sets: dict[int, np.ndarray]
    texts: dict[str, list[int]]


def build(sets: dict[str, Iterable[str]], options: Contamination) -> Index:
    """Returns the index of some evaluation sets, of their texts."""
    found: dict[int, list[np.ndarray]] = {}
    owners: dict[int, list[np.ndarray]] = {}
    counts = {}
    known: dict[str, int] = {}
    for number, (name, texts) in enumerate(sets.items()):
        counts[name] = [0, 0]
        for text in texts:
            hashed = words.hashes(words.normal(text), known)
            counts[name][len(hashed) < options.shortest] += 1
            if len(hashed) < options.shortest:
                continue
            size = min(options.ngram, len(hashed))
            grams = np.unique(words.ngrams(hashed, size))
            found.setdefault(size, []).append(grams)
            owners.setdefault(size, []).append(np.full(len(grams), number, np.uint16))
    hashes, numbers = {}, {}
    for size, parts in found.items():
        hashes[size], places = np.unique(np.concatenate(parts), return_index=True)
        numbers[size] = np.concatenate(owners[size])[places]
    return Index(list(sets), hashes, numbers, counts)


def save(index: Index, path: Path) -> None:
    """Writes an index."""
    arrays = {f'hashes {n}': values for n, values in index.hashes.items()}
    arrays |= {f'sets {n}': values for n, values in index.sets.items()}
    counts = np.array([index.texts[name] for name in index.names]).reshape(-1, 2)
    np.savez(path, names=np.array(index.names), texts=counts, **arrays)


def load(path: Path) -> Index:
    """Reads an index."""
    with np.load(path) as found:
        names = found['names'].tolist()
        parts = [{}, {}]
        for key in found:
            kind, _, size = key.partition(' ')
            if size:
                parts[kind == 'sets'][int(size)] = found[key]
        texts = dict(zip(names, found['texts'].tolist(), strict=True))
        return Index(names, parts[0], parts[1], texts)


def of(hashed: np.ndarray, index: Index) -> str:
    """Returns the evaluation set that a document holds some of, '' for none.

    Args:
        hashed: of the document's words, uint64.
        index: what is looked for.
    """
    for size, hashes in index.hashes.items():
        grams = words.ngrams(hashed, size)
        places = np.searchsorted(hashes, grams).clip(max=len(hashes) - 1)
        hit = np.flatnonzero(hashes[places] == grams)
        if len(hit):
            return index.names[index.sets[size][places[hit[0]]]]
    return ''
