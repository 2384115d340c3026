"""What a shard's documents are compared with others by, and what of them occurred before."""

import time

import numpy as np

from lm.data import corpus_shards
from lm.data.corpus import exact, ledger, near, words
from lm.data.corpus.options import Options
from lm.data.corpus.work import Work, save


class Fingerprints:
    """Hashes of a shard's documents, by which they are compared with others."""

    def __init__(self, chosen: Options) -> None:
        self._options = chosen.duplicates
        self._needs_words = bool(chosen.duplicates.near or chosen.contamination.evaluation)
        self._known: dict[str, int] = {}
        self._parts = {level: bytearray() for level in exact.levels(chosen.duplicates)}
        self._minhash = near.Signatures(chosen.duplicates) if chosen.duplicates.near else None
        self._signatures = bytearray()
        self._documents = 0

    def words(self, text: str, account: ledger.Ledger) -> np.ndarray:
        """Returns the hashes of a text's words, uint64; none where nothing needs them."""
        begun = time.perf_counter()
        hashed = words.hashes(words.normal(text) if self._needs_words else (), self._known)
        account.step('hashing')['seconds'] += time.perf_counter() - begun
        return hashed

    def add(self, text: str, hashed: np.ndarray, account: ledger.Ledger) -> None:
        """Takes in the next document that is kept."""
        begun = time.perf_counter()
        for level, parts in self._parts.items():
            least = self._options.min_characters
            found = list(exact.hashes(text, self._documents, level, least))
            parts += np.array(found, exact.HASHED).tobytes()
        if self._minhash:
            self._signatures += self._minhash.of(hashed).tobytes()
        self._documents += 1
        account.note('hashing', text, text, '', begun)

    def write(self, work: Work, rank: int) -> None:
        for level, parts in self._parts.items():
            every = np.sort(np.frombuffer(parts, exact.HASHED))
            save(work.path('hashes', level, f'{rank:05d}.npy'), every)
        if self._minhash:
            width = self._options.bands * self._options.rows
            signatures = np.frombuffer(self._signatures, np.uint32).reshape(-1, width)
            near.write_bands(work.path('bands'), rank, signatures, self._options)
            save(work.path('signatures', f'{rank:05d}.npy'), signatures)


class Repeats:
    """What of a shard occurred before."""

    def __init__(self, work: Work, rank: int) -> None:
        self._options = work.options
        self._removed: dict[str, dict[int, set[int]]] = {}
        for level in exact.levels(work.options.duplicates):
            parts: dict[int, set[int]] = {}
            for path in sorted(work.path('exact', level).glob('*.npy')):
                found = np.load(path, mmap_mode='r')
                low, high = np.searchsorted(found['shard'], [rank, rank + 1])
                for _, document, part in found[low:high].tolist():
                    parts.setdefault(document, set()).add(part)
            self._removed[level] = parts
        self._near: set[int] = set()
        if work.options.duplicates.near:
            found = np.load(work.path('near.npy'))
            low, high = np.searchsorted(
                found, np.array([rank, rank + 1], np.uint64) << np.uint64(32)
            )
            self._near = set((found[low:high] & np.uint64(0xFFFFFFFF)).tolist())

    def judge(self, number: int, record: corpus_shards.Json, account: ledger.Ledger) -> str:
        """Takes repeated parts out of a record; returns the step that drops it, '' if none does."""
        before, begun = record['text'], time.perf_counter()
        if 'document' in self._removed:
            again = number in self._removed['document']
            account.note('exact duplicates', before, before, 'seen before' * again, begun)
            if again:
                return 'exact duplicates'
        if self._options.duplicates.near:
            again = number in self._near
            account.note('near duplicates', before, before, 'seen before' * again, begun)
            if again:
                return 'near duplicates'
        if len(self._removed) > ('document' in self._removed):
            text = self._without_parts(number, before)
            least = self._options.clean.min_words
            gone = text is not before and words.count(text) < max(1, least)
            account.note('repeated parts', before, text, 'little is left' * gone, begun)
            record['text'] = text
            if gone:
                return 'repeated parts'
        return ''

    def _without_parts(self, number: int, text: str) -> str:
        paragraphs, lines = (
            self._removed.get(level, {}).get(number, set()) for level in ('paragraph', 'line')
        )
        return exact.without(text, paragraphs, lines) if paragraphs or lines else text
