"""Near duplicates: documents with many of the same shingles (words in a row), by MinHash and bands.

Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3. The permutations, and the search for
documents that agree in a band, are datatrove's. Shingles are of words that do not assume spaces, hashed by
numpy; and a pair counts only where the two signatures agree in as many hashes as the similarity asks for.
So bands of few rows find nearly all pairs, and nothing else is removed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig

from lm.data.corpus import words
from lm.data.corpus.options import Duplicates
from lm.writer import atomic_write

_ROWS = 512  # Shingles that are hashed at once, so that they stay in the processor's cache.
_PRIME = np.uint64((1 << 61) - 1)
PAIR = np.dtype([('shard_a', '<u4'), ('a', '<u4'), ('shard_b', '<u4'), ('b', '<u4')])


def config(options: Duplicates) -> MinhashConfig:
    """Returns datatrove's form of the options."""
    return MinhashConfig(
        n_grams=options.shingle,
        num_buckets=options.bands,
        hashes_per_bucket=options.rows,
        hash_config=HashConfig(precision=32),
    )


def probability(similarity: np.ndarray | float, options: Duplicates) -> np.ndarray | float:
    """Returns how likely two documents of a similarity agree in a band: 1 - (1 - s^rows)^bands."""
    return 1 - (1 - similarity**options.rows) ** options.bands


@dataclasses.dataclass
class Signatures:
    """Makes the MinHash signatures of documents."""

    options: Duplicates

    def __post_init__(self) -> None:
        made = MinhashDedupSignature('.', config(self.options), language=words.Tokenizer())
        self._factors, self._terms = (np.ascontiguousarray(one.T) for one in made.parameters)

    def of(self, hashed: np.ndarray) -> np.ndarray:
        """Returns the signature of a text, uint32 [bands * rows].

        Args:
            hashed: of its words, uint64. A text with fewer words than a shingle is one shingle.
        """
        shingles = words.ngrams(hashed, min(self.options.shingle, max(len(hashed), 1)))
        shingles = np.unique(shingles)
        least = np.full(len(self._factors), _PRIME)
        for start in range(0, len(shingles), _ROWS):
            # (shingle * factor + term) mod 2^61 - 1, as 2^61 is 1 there.
            some = self._factors * shingles[start : start + _ROWS]  # [hashes, shingles]
            some += self._terms
            high = some >> np.uint64(61)
            some &= _PRIME
            some += high
            np.subtract(some, _PRIME, out=some, where=some >= _PRIME)
            some &= np.uint64(0xFFFFFFFF)
            np.minimum(least, some.min(axis=1), out=least)
        return least.astype(np.uint32)


def write_bands(folder: Path, rank: int, signatures: np.ndarray, options: Duplicates) -> None:
    """Writes a shard's signatures as datatrove's search reads them: by band, sorted.

    Args:
        folder: of all bands.
        rank: of the shard.
        signatures: uint32 [documents, bands * rows].
        options: how many.
    """
    record = np.dtype([(f'f{i}', '<u4') for i in range(options.rows + 1)])
    numbers = np.arange(len(signatures), dtype=np.uint32)[:, None]
    for band in range(options.bands):
        part = signatures[:, band * options.rows : (band + 1) * options.rows]
        rows = np.ascontiguousarray(np.hstack([part, numbers]), '<u4').view(record).ravel()
        path = folder / f'bucket_{band:03d}' / f'{rank:05d}.minhash.sig'
        atomic_write(path, np.sort(rows, order=record.names).tobytes())


def pairs(folder: Path) -> np.ndarray:
    """Returns the pairs that agree in a band, PAIR, each once, the earlier document first."""
    found = [np.fromfile(path, PAIR) for path in sorted(folder.glob('*.dups'))]
    every = np.unique(np.concatenate([*found, np.zeros(0, PAIR)]))
    swapped = np.stack([_key(every, 'a'), _key(every, 'b')], axis=1)
    swapped.sort(axis=1)
    low, high = np.unique(swapped, axis=0).reshape(-1, 2).T
    result = np.zeros(len(low), PAIR)
    result['shard_a'], result['a'] = low >> np.uint64(32), low & np.uint64(0xFFFFFFFF)
    result['shard_b'], result['b'] = high >> np.uint64(32), high & np.uint64(0xFFFFFFFF)
    return result


def _key(found: np.ndarray, side: str) -> np.ndarray:
    return (found[f'shard_{side}'].astype(np.uint64) << np.uint64(32)) | found[side]


def similarities(found: np.ndarray, signatures: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the part of the hashes in which both of a pair agree, float64 [pairs]: Jaccard's estimate.

    Args:
        found: PAIR.
        signatures: of each shard, uint32 [documents, hashes].
    """
    result = np.zeros(len(found))
    for number, (shard_a, a, shard_b, b) in enumerate(found.tolist()):
        result[number] = np.mean(signatures[shard_a][a] == signatures[shard_b][b])
    return result


def without(found: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Returns the pairs, PAIR, of which neither document is gone already.

    Args:
        found: PAIR.
        gone: with `shard` and `document`.
    """
    keys = (gone['shard'].astype(np.uint64) << np.uint64(32)) | gone['document']
    return found[~(np.isin(_key(found, 'a'), keys) | np.isin(_key(found, 'b'), keys))]


def removed(found: np.ndarray, signatures: Sequence[np.ndarray], least: float) -> np.ndarray:
    """Returns the documents that are similar to an earlier one which is kept.

    Not what is similar to one that is dropped: of a chain, in which each document is like the next, as much
    stays as is not like what stays before it.

    Args:
        found: pairs that agree in a band, PAIR.
        signatures: of each shard, uint32 [documents, hashes].
        least: the similarity that counts.

    Returns:
        uint64 (shard << 32 | document), sorted.
    """

    def signature(key: int) -> np.ndarray:
        return signatures[key >> 32][key & 0xFFFFFFFF]

    stands_for: dict[int, int] = {}
    order = np.lexsort((_key(found, 'a'), _key(found, 'b')))
    for first, second in zip(
        _key(found, 'a')[order].tolist(), _key(found, 'b')[order].tolist(), strict=True
    ):
        if second not in stands_for:
            kept = stands_for.get(first, first)
            if np.mean(signature(kept) == signature(second)) >= least:
                stands_for[second] = kept
    return np.array(sorted(stands_for), np.uint64)


def shown(found: np.ndarray, similar: np.ndarray, most: int, least: float) -> list[dict[str, Any]]:
    """Returns pairs to look at: the nearest, and those that just count, and just do not."""
    order = np.argsort(-similar, kind='stable')
    counting = order[similar[order] >= least]
    third = max(1, most // 3)
    places = [*order[:third], *counting[-third:], *order[len(counting) :][:third]]
    return [
        {'similarity': float(similar[i]), 'removed': bool(similar[i] >= least), **_named(found[i])}
        for i in dict.fromkeys(int(place) for place in places)
    ]


def _named(pair: np.ndarray) -> dict[str, list[int]]:
    shard_a, a, shard_b, b = pair.tolist()
    return {'first': [shard_a, a], 'second': [shard_b, b]}
