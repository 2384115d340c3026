"""Several corpora as one stream of batches: how many rows of each are in each batch.

All of it is settled before the first step, so that batch i is a function of (seed, i) alone: rows are due
by the rates, in fractions; they come whole, and no corpus is ever a row or more ahead of what is due, or
behind it. Row k of a corpus is row k of the order that a run of it alone has.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grain
import numpy as np

from lm import corpora
from lm.config import DataConfig
from lm.data import mixture, pipeline
from lm.data.features import TokenizedSplit
from lm.data.mixture import Tasks
from lm.data.pipeline import Augment, Batch, Objective, Packed
from lm.errors import InputError, lookup
from lm.rows import ALL, HostRows

_NOISE = 1e-6  # Rows: sums of so many rates are no more exact than this.


@dataclasses.dataclass(frozen=True)
class Blend:
    """What a run, or one of its tasks, is trained on.

    Attributes:
        names: of the corpora; ('',) where `config.data.train` is all.
        packed: the rows of each.
        data: the config.
        seed: of the first; that of the corpus after it is one more.
        wanted: float64 [steps, corpora], their rates where no row was ever used up.
        counts: int64 [steps + 1, corpora], the rows of each before each step.
        most: float64 [corpora], the rows of each that there are to be; inf is no limit.
    """

    names: tuple[str, ...]
    packed: tuple[Packed, ...]
    data: DataConfig
    seed: int
    wanted: np.ndarray
    counts: np.ndarray
    most: np.ndarray

    @property
    def rows(self) -> int:
        """The rows of all."""
        return sum(len(packed.rows) for packed in self.packed)

    def dataset(self, rows: HostRows = ALL) -> grain.MapDataset:
        """Returns this host's part of every batch, as `pipeline.train_dataset`.

        After the batches of the last step come those of the first: some are made ahead.
        """
        if not self.data.corpora:
            return pipeline.batched(self.packed[0], self.data, self.seed, rows)
        here = rows.of(self.data.batch_size)
        streams = [
            pipeline.train_rows(packed, self.data, self.seed + number)
            for number, packed in enumerate(self.packed)
        ]

        def batch(step: int) -> Batch:
            chosen = self.chosen(step)
            made = [streams[corpus][row] for corpus, row in (chosen[number] for number in here)]
            return {name: np.stack([row[name] for row in made]) for name in made[0]}

        return grain.MapDataset.range(len(self.wanted)).map(batch).repeat()

    def chosen(self, step: int) -> list[tuple[int, int]]:
        """Returns the rows of a batch as (corpus, row of it); each corpus is spread over the batch."""
        first, counts = self.counts[step], np.diff(self.counts[step : step + 2], axis=0)[0]
        found = [
            ((number + 0.5) / count, corpus, int(first[corpus]) + number)
            for corpus, count in enumerate(counts.tolist())
            for number in range(count)
        ]
        return [(corpus, row) for _, corpus, row in sorted(found)]

    def describe(self, step: int) -> dict[str, Any]:
        """Returns the identity of a batch, as `pipeline.describe`.

        Of corpora `source` and `cache` are by name, and a row is [name, windows].
        """
        if not self.data.corpora:
            packed = self.packed[0]
            return pipeline.describe(packed.split, self.data, packed.objective, self.seed, step)
        streams = [
            pipeline.chosen_rows(packed, self.data, self.seed + number)
            for number, packed in enumerate(self.packed)
        ]
        splits = {n: packed.split for n, packed in zip(self.names, self.packed, strict=True)}
        return {
            'batch': step,
            'source': {name: split.spec for name, split in splits.items()},
            'cache': {name: split.key for name, split in splits.items()},
            'rows': [
                [self.names[corpus], pipeline.identity(streams[corpus][row])]
                for corpus, row in self.chosen(step)
            ],
        }

    @functools.cached_property
    def changes(self) -> bool:
        """The rates are not the same in all steps."""
        return bool((self.wanted != self.wanted[0]).any() or (self.counts[-1] >= self.most).any())

    def rates(self, step: int) -> dict[str, float]:
        """Returns what part of the rows each corpus is at a step; 0 where it is used up."""
        found = self.wanted[step] * (self.counts[step] < self.most)
        return dict(zip(self.names, (found / found.sum()).tolist(), strict=True))

    def seen(self, steps: int) -> list[dict[str, Any]]:
        """Returns what was seen of each corpus in so many steps (JSON).

        Returns:
            Of each `name`, `source`, `rows`, `tokens` (those that count in the loss) of an epoch,
            `rows_seen`, `share` (of all rows that were seen), and `epochs` (how often each was seen).
        """
        found = []
        for name, packed, seen in zip(self.names, self.packed, self.counts[steps], strict=True):
            found.append(
                {
                    'name': name,
                    'source': packed.split.spec,
                    'rows': len(packed.rows),
                    'tokens': packed.split.num_targets,
                    'rows_seen': int(seen),
                    'share': float(seen / max(self.counts[steps].sum(), 1)),
                    'epochs': float(seen / len(packed.rows)),
                }
            )
        return found


def build(
    splits: Mapping[str, TokenizedSplit],
    data: DataConfig,
    objective: Objective,
    seed: int,
    steps: int,
    augmenters: Mapping[str, Augment] = MappingProxyType({}),
) -> Blend:
    """Returns what is trained on.

    Args:
        splits: of `config.data.corpora`, by name; or '' and that of `config.data.train`.
        data: the config.
        objective: what is made of each window.
        seed: of the order, the crops and the objective.
        steps: of the run.
        augmenters: by name too, what `config.data.augment` says.

    Raises:
        InputError: a split is not of what the objective learns from, or too small; some are of pairs and
            some are not; the rates are not known; or all rows are used up before the last step.
    """
    named = corpora.parse(data.corpora, 'config.data.corpora')
    law = lookup(mixture.BY_STEP, data.rates, 'config.data.rates')
    _check_one_kind(splits)
    packed = tuple(
        pipeline.pack_train(splits[name], data, objective, augmenters.get(name))
        for name in named or ('',)
    )
    rows = np.array([len(each.rows) for each in packed], float)
    if rows.sum() < data.batch_size:
        raise InputError(
            f'config.data.corpora have {rows.sum():.0f} rows, less than config.data.batch_size = '
            f'{data.batch_size}; lower that or config.data.length.'
        )
    if not named:
        counts = data.batch_size * np.arange(steps + 1)[:, None]
        return Blend(('',), packed, data, seed, np.ones((steps, 1)), counts, np.full(1, np.inf))
    _, first, last, epochs = map(np.array, zip(*named.values(), strict=True))
    parts = Tasks(tuple(named), first, last, rows)
    done = np.arange(steps)[:, None] / max(1, steps - 1)
    wanted = law(parts, mixture.Law(data.rates_temperature, data.rates_limit), done)
    wanted = np.broadcast_to(wanted / wanted.sum(axis=-1, keepdims=True), (steps, len(rows)))
    most = np.where(epochs > 0, np.maximum(np.rint(epochs * rows), 1), np.inf)
    counts = whole(due(wanted, data.batch_size, most), data.batch_size)
    return Blend(tuple(named), packed, data, seed, wanted, counts, most)


def _check_one_kind(splits: Mapping[str, TokenizedSplit]) -> None:
    kinds = {split.paired: name for name, split in splits.items()}
    if len(kinds) > 1:
        raise InputError(
            f"config.data.corpora: '{kinds[True]}' is of pairs and '{kinds[False]}' of single texts; all "
            'must be of one kind.'
        )


def due(wanted: np.ndarray, batch_size: int, most: np.ndarray) -> np.ndarray:
    """Returns the rows of each corpus that are due before each step, in fractions.

    >>> due(np.full((4, 2), 0.5), 2, np.array([2.5, np.inf]))
    [[0, 0], [1, 1], [2, 2], [2.5, 3.5], [2.5, 5.5]]

    Args:
        wanted: float64 [steps, corpora]; the sum of each step is 1.
        batch_size: rows of a step.
        most: float64 [corpora]. Who has come to it has no more, and the others share what it had.

    Returns:
        float64 [steps + 1, corpora].

    Raises:
        InputError: at some step there is nothing left that has a rate.
    """
    found = np.concatenate([np.zeros((1, len(most))), batch_size * np.cumsum(wanted, axis=0)])
    while (over := (found > most).any(axis=1)).any():
        step = int(np.argmax(over))  # The first after which there is more than can be.
        if (after := _shared(found[step - 1], wanted[step - 1], batch_size, most)) is None:
            raise _used_up(step, len(wanted))
        found[step] = after
        left = wanted[step:] * (found[step] < most)
        totals = left.sum(axis=1, keepdims=True)
        if not totals.all():
            raise _used_up(step + 1 + int(np.argmin(totals[:, 0] > 0)), len(wanted))
        found[step + 1 :] = found[step] + batch_size * np.cumsum(left / totals, axis=0)
    return found


def _shared(now: np.ndarray, rates: np.ndarray, left: float, most: np.ndarray) -> np.ndarray | None:
    """Returns what is due after a step in which some corpora are used up; None where all are."""
    now = now.copy()
    while left > _NOISE:
        part = rates * (now < most)
        if not part.any():
            return None
        part = part / part.sum()
        room = np.divide(most - now, part, out=np.full(len(part), np.inf), where=part > 0)
        taken = min(left, room.min())
        now = np.where(room <= taken + _NOISE, most, now + taken * part)
        left -= taken
    return now


def _used_up(step: int, steps: int) -> InputError:
    return InputError(
        f'config.data.corpora: all rows are used up in step {step} of {steps}: let a corpus be seen more '
        "often ('epochs'; 0 = no limit), or lower config.train.steps."
    )


def whole(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns whole rows that follow what is due, never off by one or more.

    Each corpus has had all whole rows that are due. Those that fill the batch come early: of the corpora
    for which the next row would be due first (Tijdeman 1980, the chairman assignment problem; that the
    earliest deadline goes first leaves none behind). A row that came early stays.

    >>> whole(np.arange(4)[:, None] * np.array([0.5, 0.25, 0.25]), 1)
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]

    Args:
        rows: float64 [steps + 1, corpora], not decreasing; the sums are 0, batch_size, 2 batch_size ...
        batch_size: rows of a step.

    Returns:
        int64 [steps + 1, corpora], not decreasing, of the same sums.
    """
    near = np.rint(rows)
    rows = np.where(abs(rows - near) < _NOISE, near, rows)
    full = np.floor(rows).astype(np.int64)
    early = batch_size * np.arange(len(rows)) - full.sum(axis=1)
    part = rows - full
    # When the row after the full ones will be due, less what is due of it, which tells ties apart.
    deadline = np.stack([np.searchsorted(c, c, side='right') for c in full.T], axis=1) - part
    deadline[part == 0] = np.inf
    taken = _first(deadline, early[:, None])
    keeps = full[1:] == full[:-1]
    for step in (1 + np.flatnonzero((keeps & (part[1:] > 0)).any(axis=1))).tolist():
        kept = taken[step - 1] & keeps[step - 1]
        if (kept & ~taken[step]).any():
            taken[step] = _first(np.where(kept, -np.inf, deadline[step]), early[step])
    return full + taken


def _first(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Returns which are the `count` smallest of the last axis; bool, as `values`."""
    order = np.argsort(values, axis=-1, kind='stable')
    return np.argsort(order, axis=-1) < count
