"""What each step kept and dropped: counts that add up over shards, and examples of it."""

import collections
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

Json = dict[str, Any]
_SHOWN = 600  # Characters of an example.


def utf8(text: str) -> int:
    """Returns the bytes of a text."""
    return len(text) if text.isascii() else len(text.encode(errors='surrogatepass'))


class Ledger:
    """The account of one shard, or the sum of several.

    Attributes:
        steps: by name, in order: `documents` and `bytes` that came, `kept` and `kept_bytes`, `changed`
            documents, `seconds`, `reasons` with counts, and `examples` by reason.
        lengths: documents that were kept, by the power of two that their words reach.
        sources: by name, documents and bytes that came and were kept.
        planted: by fault, documents that came, and by step how many were dropped.
    """

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self.steps: dict[str, Json] = {}
        self.lengths: collections.Counter[str] = collections.Counter()
        self.sources: dict[str, list[int]] = {}
        self.planted: dict[str, Json] = {}

    def step(self, name: str) -> Json:
        """Returns the account of a step, which begins with the first call."""
        return self.steps.setdefault(
            name,
            {
                **dict.fromkeys(('documents', 'bytes', 'kept', 'kept_bytes', 'changed'), 0),
                'seconds': 0.0,
                'reasons': {},
                'examples': {},
            },
        )

    def note(self, name: str, before: str, after: str, reason: str, begun: float) -> None:
        """Notes what a step did to a document.

        Args:
            name: of the step.
            before: the text that came.
            after: the text that is left.
            reason: why it was dropped; '' if it was not.
            begun: `time.perf_counter()` then.
        """
        entry = self.step(name)
        entry['seconds'] += time.perf_counter() - begun
        size = utf8(before)
        entry['documents'] += 1
        entry['bytes'] += size
        if reason:
            entry['reasons'][reason] = entry['reasons'].get(reason, 0) + 1
            self._exemplify(entry['examples'], reason, before)
            return
        changed = after is not before and after != before
        entry['kept'] += 1
        entry['kept_bytes'] += utf8(after) if changed else size
        entry['changed'] += changed
        if changed:
            self._exemplify(entry['examples'], '', before, after)

    def _exemplify(self, examples: Json, reason: str, *texts: str) -> None:
        """Keeps the documents with the smallest hashes: the same ones, however they are dealt out."""
        if not self._examples:
            return
        kept = examples.setdefault(reason, [])
        key = xxhash.xxh3_64_intdigest(texts[0][:4096])
        if len(kept) < self._examples or key < kept[-1][0]:
            shown = [text[:_SHOWN] for text in texts] if len(texts) == 1 else _difference(*texts)
            kept.append([key, *shown])
            kept.sort()
            del kept[self._examples :]

    def came(self, source: str, size: int) -> None:
        """Notes a document that was read, in bytes."""
        entry = self.sources.setdefault(source, [0, 0, 0, 0])
        entry[0] += 1
        entry[1] += size

    def stayed(self, source: str, size: int, words: int) -> None:
        """Notes a document that is in the corpus."""
        entry = self.sources.setdefault(source, [0, 0, 0, 0])
        entry[2] += 1
        entry[3] += size
        self.lengths[str(words.bit_length())] += 1

    def plant(self, fault: str, step: str) -> None:
        """Notes what became of a planted document: dropped by a step, or '' for kept."""
        entry = self.planted.setdefault(fault, {})
        entry[step] = entry.get(step, 0) + 1

    def add(self, other: 'Ledger') -> None:
        """Adds another account."""
        for name, entry in other.steps.items():
            mine = self.step(name)
            for key, value in entry.items():
                if isinstance(value, int | float):
                    mine[key] += value
            for reason, count in entry['reasons'].items():
                mine['reasons'][reason] = mine['reasons'].get(reason, 0) + count
            for reason, examples in entry['examples'].items():
                kept = mine['examples'].setdefault(reason, [])
                kept += examples
                kept.sort()
                del kept[self._examples :]
        self.lengths.update(other.lengths)
        for name, counts in other.sources.items():
            mine = self.sources.setdefault(name, [0] * 4)
            mine[:] = [a + b for a, b in zip(mine, counts, strict=True)]
        for fault, steps in other.planted.items():
            for step, count in steps.items():
                entry = self.planted.setdefault(fault, {})
                entry[step] = entry.get(step, 0) + count

    def to_json(self) -> Json:
        """Returns all of it."""
        return {
            'steps': self.steps,
            'lengths': dict(self.lengths),
            'sources': self.sources,
            'planted': self.planted,
        }


def _difference(before: str, after: str) -> list[str]:
    """Returns about where a text was changed, before and after."""
    start = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
        min(len(before), len(after)),
    )
    start = max(0, start - _SHOWN // 4)
    return [before[start : start + _SHOWN // 2], after[start : start + _SHOWN // 2]]


def read(paths: Iterable[Path], examples: int) -> Ledger:
    """Returns the sum of accounts that were written as JSON."""
    total = Ledger(examples)
    for path in paths:
        found = json.loads(path.read_text())['ledger']
        one = Ledger(examples)
        one.steps, one.sources, one.planted = found['steps'], found['sources'], found['planted']
        one.lengths = collections.Counter(found['lengths'])
        total.add(one)
    return total
