"""What occurs again letter by letter: documents, paragraphs, lines. The first occurrence stays.

Each shard writes the hashes of its parts, sorted; each of `PARTITIONS` tasks merges one range of hashes of
all shards, and writes what is to be removed. What is equal but for white space counts as equal.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from lm.data.corpus.options import Duplicates

PARTITIONS = 16
HASHED = np.dtype([('hash', '<u8'), ('document', '<u4'), ('part', '<u4')])
REMOVED = np.dtype([('shard', '<u4'), ('document', '<u4'), ('part', '<u4')])


def levels(options: Duplicates) -> tuple[str, ...]:
    """Returns the levels that are compared; boilerplate is found among lines."""
    lines = ('line',) if options.boilerplate and 'line' not in options.exact else ()
    return (*options.exact, *lines)


def _parts(text: str, level: str) -> list[str]:
    if level == 'document':
        return [text]
    return text.split('\n\n' if level == 'paragraph' else '\n')


def hashes(text: str, document: int, level: str, least: int) -> Iterator[tuple[int, int, int]]:
    """Yields (hash, document, number of the part) of each part that is long enough."""
    for number, part in enumerate(_parts(text, level)):
        shown = ' '.join(part.split())
        if level == 'document' or len(shown) >= least:
            yield xxhash.xxh3_64_intdigest(shown), document, number


def find(shards: list[np.ndarray], level: str, options: Duplicates) -> np.ndarray:
    """Returns what is to be removed, REMOVED, sorted.

    Args:
        shards: of each the parts with hashes in one range, HASHED.
        level: document | paragraph | line.
        options: what repeats are.
    """
    hashed = np.concatenate([*shards, np.zeros(0, HASHED)])
    shard = np.repeat(np.arange(len(shards), dtype=np.uint32), [len(one) for one in shards])
    order = np.lexsort((hashed['part'], hashed['document'], shard, hashed['hash']))
    hashed, shard = hashed[order], shard[order]
    again = np.zeros(len(hashed), bool)
    again[1:] = hashed['hash'][1:] == hashed['hash'][:-1]
    removed = again if level in options.exact else np.zeros(len(hashed), bool)
    if level == 'line' and options.boilerplate:
        group = np.cumsum(~again) - 1
        same = again.copy()
        same[1:] &= (shard[1:] == shard[:-1]) & (hashed['document'][1:] == hashed['document'][:-1])
        documents = np.bincount(group, ~same, minlength=1)
        removed = removed | (documents >= options.boilerplate)[group]
    found = np.zeros(int(removed.sum()), REMOVED)
    found['shard'] = shard[removed]
    found['document'], found['part'] = hashed['document'][removed], hashed['part'][removed]
    found.sort()
    return found


def partition(path: Path, number: int) -> np.ndarray:
    """Returns the part of a shard's sorted hashes that belongs to a task."""
    hashed = np.load(path, mmap_mode='r')
    width = (1 << 64) // PARTITIONS
    low = np.searchsorted(hashed['hash'], np.uint64(number * width))
    last = number == PARTITIONS - 1
    high = len(hashed) if last else np.searchsorted(hashed['hash'], np.uint64((number + 1) * width))
    return np.array(hashed[low:high])


def without(text: str, paragraphs: set[int], lines: set[int]) -> str:
    """Returns a text without these of its paragraphs and lines.

    >>> without('a\\nb\\n\\nc', {1}, {0})
    'b'
    """
    kept, number = [], 0
    for place, paragraph in enumerate(text.split('\n\n')):
        found = paragraph.split('\n')
        if place not in paragraphs:
            left = [line for i, line in enumerate(found, number) if i not in lines]
            if any(line.strip() for line in left):
                kept.append('\n'.join(left))
        number += len(found) + 1  # The blank line behind it.
    return '\n\n'.join(kept)
