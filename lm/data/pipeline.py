"""From a tokenized split to batches, by Grain.

A training batch is a pure function of (seed, batch number): rows are shuffled anew in each epoch, over
the whole split, and cut into global batches, of which each host makes its own rows. So the state of the
input is the number of batches taken, whatever the number of hosts.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from lm import codes
from lm.config import DataConfig
from lm.data import augment, pack
from lm.data.features import TokenizedSplit
from lm.errors import InputError
from lm.rows import ALL, HostRows

_ENDLESS = 1 << 40  # Batches.

Batch = dict[str, np.ndarray]
# (rng, n) -> at most n tokens of a random document.
Draw = Callable[[np.random.Generator, int], np.ndarray]
# (tokens int32 [n], rng, most) -> int32 [at most `most`]; `lm.data.augmenter.Augmenter`.
Augment = Callable[[np.ndarray, np.random.Generator, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Objective:
    """An entry of `lm.objectives` with its config filled in.

    Attributes:
        fields: (tokens int32 [n], rng, draw) -> fields of a row: arrays [t], and [s] for encoders beside.
            Of whole texts it gets a tuple in the place of tokens, and with labels (that, label).
        window: n, the most tokens that fit a row.
        least: n, the fewest tokens that there is something to learn from.
        sizes: n -> (t, s), at most.
        length: T.
        source_length: S; 0 without an encoder beside.
        overlap: tokens that a window shares with the next one.
        whole: every token of the text is predicted once.
        slides: windows may overlap, of which only the last targets are scored.
        takes: of 'window', 'text' and 'pair': what it learns from.
        label: a label as the source has it -> what is learnt of it; None where it learns none.
        writes: pairs are a text and what is written from it; `sizes(0)` is what stands around them.
        name: as the config has it, for messages.
    """

    fields: Callable[..., dict[str, np.ndarray]]
    window: int
    least: int
    sizes: Callable[[int], tuple[int, int]]
    length: int
    source_length: int = 0
    overlap: int = 0
    whole: bool = False
    slides: bool = False
    takes: frozenset[str] = frozenset({'window'})
    label: Callable[[str], int | float] | None = None
    writes: bool = False
    name: str = ''

    @property
    def of_texts(self) -> bool:
        """What is predicted is of whole texts; no token counts in the loss."""
        return 'window' not in self.takes and not self.writes

    @property
    def most_codes(self) -> int:
        """The most tokens of codes before the text of a window."""
        return self.length // 2

    @property
    def sides(self) -> tuple[int, int]:
        """The most tokens of a source, and of what is written from it."""
        targets, sources = self.sizes(0)  # What stands around them.
        return self.source_length - sources, self.length - targets

    def costs(self, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """Returns which part of a row windows take, int64, of the longer of T and S."""
        whole = max(self.length, self.source_length)
        cost = -(-targets.astype(np.int64) * whole // self.length)
        if not self.source_length:
            return cost
        return np.maximum(cost, -(-sources.astype(np.int64) * whole // self.source_length))


_THREADS = 2
_PREFETCH = 8  # Batches made ahead.


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens `start` to `start + size + overlap` of a document; targets from `score_from` on are scored."""

    document: int
    start: int
    size: int
    score_from: int


@dataclasses.dataclass(frozen=True)
class Packed:
    """A split and its rows.

    Attributes:
        split: the tokens.
        windows: what they are cut into.
        rows: which windows are in each.
        objective: what is made of them.
        growth: room for so many tokens is kept for each of a window's.
        code_dropout: rate.
        augment: what is done to text before; None for evaluation.
    """

    split: TokenizedSplit
    windows: pack.Windows
    rows: pack.Rows
    objective: Objective
    growth: float = 1.0
    code_dropout: float = 0.0
    augment: Augment | None = None

    def row(self, index: int) -> list[Window]:
        """Returns the windows of a row."""
        chosen = self.rows[index]
        return [*map(Window, *(field[chosen].tolist() for field in self.windows))]

    def fields(self, row: list[Window], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns a row's arrays [T], and [S]."""
        objective, parts = self.objective, []
        for window in row:
            draw = functools.partial(self._draw, window.document)
            tokens, first = self._tokens(window), window.score_from
            if self.augment:
                tokens = self._augmented(tokens, window.document, rng)
            if len(before := self._codes(window.document, rng)):
                tokens, first = codes.before(tokens, before, window.start == 0), first + len(before)
            part = objective.fields(tokens, rng, draw)
            if first:
                scored = np.arange(len(part['loss_weights'])) >= first
                part = {**part, 'loss_weights': part['loss_weights'] * scored}
            parts.append(part)
        return pack.assemble(parts, objective.length, objective.source_length)

    def _tokens(self, window: Window) -> Any:
        split, objective = self.split, self.objective
        if 'window' in objective.takes:
            stop = window.start + window.size + objective.overlap
            return split.window(window.document, window.start, stop)
        sides = 1 + split.paired
        first = sides * window.document
        texts = tuple(split.document(first + side) for side in range(sides))
        if objective.writes:
            return tuple(t[1:-1][:most] for t, most in zip(texts, objective.sides, strict=True))
        if objective.label is None:
            return texts
        return texts, objective.label(split.label_names[split.labels[window.document]])

    def _augmented(self, tokens: Any, document: int, rng: np.random.Generator) -> Any:
        """Returns what `_tokens` does with its texts augmented, but for those that are to be written."""
        objective = self.objective
        if 'window' in objective.takes:
            before = min(len(self.split.codes_of(document)), objective.most_codes)
            most = min(_grown(len(tokens), self.growth), objective.window - before)
            made = self.augment(tokens, rng, most)
            return made if len(made) >= objective.least else tokens
        if objective.writes:
            source, target = tokens
            most = min(_grown(len(source), self.growth), objective.sides[0])
            return self.augment(source, rng, most), target
        texts, *label = (tokens,) if objective.label is None else tokens
        made = tuple(self.augment(text, rng, objective.length) for text in texts)
        return (made, *label) if label else made

    def _codes(self, document: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the tokens of a document's codes, int32, at most half a row of them."""
        found = self.split.codes_of(document)[: self.objective.most_codes]
        if len(found) and self.code_dropout and rng.random() < self.code_dropout:
            return found[:0]
        return found

    def _draw(self, document: int, rng: np.random.Generator, size: int) -> np.ndarray:
        """Returns tokens of another document; where there is but one, of that."""
        other = int(rng.integers(max(self.split.num_documents - 1, 1)))
        other += other >= document and self.split.num_documents > 1
        there = int(self.split.offsets[other + 1] - self.split.offsets[other])
        start = int(rng.integers(max(there - size, 0) + 1))
        tokens = self.split.window(other, start, start + size)
        return self.augment(tokens, rng, size) if self.augment else tokens


def pack_split(
    split: TokenizedSplit,
    objective: Objective,
    packing: bool,
    stride: int = 0,
    growth: float = 1.0,
) -> Packed:
    """Returns the rows of a split; the same on every host.

    Args:
        split: the tokens.
        objective: what is made of them.
        packing: several windows in a row.
        stride: see `lm.data.pack.windows`.
        growth: augmentation may make so many tokens of one; room for them is kept. Targets that are
            written do not grow.

    Raises:
        InputError: the objective learns from pairs, or labels, and the split has none, or the other way
            round; or a label is not known.
    """
    check_source(split, objective)
    if 'window' not in objective.takes:
        lengths = (split.lengths - 2).reshape(-1, 1 + split.paired)
        number = np.arange(len(lengths))
        zeros = np.zeros(len(lengths), np.int32)
        if objective.writes:
            lengths[:, 0] = _grown(lengths[:, 0], growth)
            sources, targets = np.minimum(lengths, objective.sides).T
            around = objective.sizes(0)
            costs = objective.costs(targets + around[0], sources + around[1])
        else:  # A row has one label.
            targets = lengths.sum(axis=1)
            costs = np.full(len(lengths), objective.length)
        windows = pack.Windows(number, zeros, targets.astype(np.int32), zeros)
    else:
        overlap = objective.overlap
        before = _code_tokens(split, objective)
        room = _room(split, objective, growth)
        windows = pack.windows(split.lengths, room, stride, overlap)
        enough = windows.size + overlap >= objective.least
        windows = pack.Windows(*(field[enough] for field in windows))
        sizes = np.array([objective.sizes(n) for n in range(objective.window + 1)])
        tokens = _grown(windows.size + overlap, growth) + before[windows.document]
        costs = objective.costs(*sizes[np.minimum(tokens, objective.window)].T)
    whole = max(objective.length, objective.source_length)
    return Packed(split, windows, pack.rows(costs, whole, packing), objective, growth)


def _room(split: TokenizedSplit, objective: Objective, growth: float) -> np.ndarray:
    """Returns the most targets in a window of each document, int64 [documents]."""
    whole = objective.window - objective.overlap - _code_tokens(split, objective)
    return np.maximum((whole / growth).astype(np.int64), 1)


def _grown(tokens: Any, growth: float) -> Any:
    """Returns the most tokens that so many may become, int."""
    return np.ceil(tokens * growth - 1e-6).astype(int)


def check_source(split: TokenizedSplit, objective: Objective) -> None:
    """Raises InputError where the source is not of what the objective learns from."""
    name = f"config.objective.name = '{objective.name}'"
    what = f"the source '{split.spec}'" if split.spec else 'a list of texts'
    form = 'pair' if split.paired else 'text'
    if form not in ({'text'} if 'window' in objective.takes else objective.takes):
        if split.paired:
            raise InputError(
                f'{what} is of pairs of texts, and {name} learns from single ones: name one field.'
            )
        raise InputError(
            f"{what} is of single texts, and {name} learns from pairs: give 'parallel:...', "
            "'tsv:...#A,B' or 'builtin:numerals'."
        )
    if objective.label is None:
        return
    if not split.label_names:
        raise InputError(
            f"{what} has no labels, which {name} learns: name the field that holds them after a '=', "
            "such as '#premise,hypothesis=gold'."
        )
    for label in split.label_names:
        try:
            objective.label(label)
        except InputError as error:
            raise InputError(f'{what}: {error}') from None


def _pack_grown(split: TokenizedSplit, data: DataConfig, objective: Objective) -> Packed:
    """Returns the rows of a training split, with room for what augmentation adds."""
    return pack_split(split, objective, data.packing, growth=augment.growth(data.augment))


def _code_tokens(split: TokenizedSplit, objective: Objective) -> np.ndarray:
    """Returns how many tokens of codes are in each window of a document, int64 [documents]."""
    return np.minimum(split.num_codes, objective.most_codes)


def train_dataset(
    split: TokenizedSplit,
    data: DataConfig,
    objective: Objective,
    seed: int,
    rows: HostRows = ALL,
    augmenter: Augment | None = None,
) -> grain.MapDataset:
    """Returns this host's part of every training batch, endless and in random order.

    Args:
        split: the training split.
        data: `batch_size`, `packing`, `random_crop`, `code_dropout` and `augment` are read.
        objective: what is made of each window.
        seed: of the order, the crops and the objective.
        rows: which of each batch this host makes.
        augmenter: what `data.augment` says (`lm.data.augmenter.build`).

    Returns:
        Element i is of batch i: a dict of arrays [rows, T], and [rows, S].

    Raises:
        InputError: the split has fewer rows than a batch.
    """
    return batched(pack_train(split, data, objective, augmenter), data, seed, rows)


def pack_train(
    split: TokenizedSplit,
    data: DataConfig,
    objective: Objective,
    augmenter: Augment | None = None,
) -> Packed:
    """Returns the rows of a training split.

    Raises:
        InputError: there are fewer than a batch has, or as `pack_split`.
    """
    if data.augment and augmenter is None:
        raise TypeError('an augmenter is needed for what config.data.augment says.')
    packed = _pack_grown(split, data, objective)
    # Of several corpora, those that are small fill it together.
    if len(packed.rows) < (1 if data.corpora else data.batch_size):
        raise InputError(
            f"the training source '{split.spec}' has {split.num_targets} tokens in "
            f'{len(packed.rows)} rows, less than one batch of {data.batch_size} rows x {objective.length} '
            'tokens; lower config.data.batch_size or config.data.length.'
        )
    return dataclasses.replace(packed, code_dropout=data.code_dropout, augment=augmenter)


def train_rows(packed: Packed, data: DataConfig, seed: int) -> grain.MapDataset:
    """Returns the endless stream of rows in random order, each a dict of arrays [T], and [S]."""
    seed_of_fields = _derived(seed, 'objective')
    return chosen_rows(packed, data, seed).random_map(packed.fields, seed=seed_of_fields)


def batched(
    packed: Packed,
    data: DataConfig,
    seed: int,
    rows: HostRows = ALL,
) -> grain.MapDataset:
    """Returns what `train_dataset` does, of rows."""
    return _batches_of(train_rows(packed, data, seed), _ENDLESS, data.batch_size, rows)


def describe(
    split: TokenizedSplit, data: DataConfig, objective: Objective, seed: int, index: int
) -> dict[str, Any]:
    """Returns the identity of global training batch `index`, for a post-mortem.

    Returns:
        A JSON value: `batch`, `source`, `cache` (the folder of the tokens), and `rows`: for each
        row of the batch its windows as [document or pair, first token, number of targets].
    """
    chosen = chosen_rows(_pack_grown(split, data, objective), data, seed)
    first = index * data.batch_size
    rows = [chosen[i] for i in range(first, first + data.batch_size)]
    return {
        'batch': index,
        'source': split.spec,
        'cache': split.key,
        'rows': [*map(identity, rows)],
    }


def identity(row: list[Window]) -> list[list[int]]:
    """Returns what a row's windows are: [document or pair, first token, number of targets]."""
    return [[w.document, w.start, w.size] for w in row]


def eval_dataset(
    split: TokenizedSplit,
    data: DataConfig,
    objective: Objective,
    stride: int,
    batch_size: int,
    rows: HostRows = ALL,
) -> grain.MapDataset:
    """Returns this host's part of the batches of a whole split, once, in order.

    Every target is scored exactly once. The last batch is filled with rows of weight 0, so that all
    have one shape and all hosts have the same number.

    Args:
        split: any split.
        data: `packing` is read.
        objective: as in `train_dataset`.
        stride: tokens; see `lm.data.pack.windows`. 0 for windows side by side.
        batch_size: rows over all hosts.
        rows: which of each batch this host makes.

    Raises:
        InputError: the stride is larger than T, or the objective allows
            none; or there is nothing long enough to predict.
    """
    if stride and not objective.slides:
        raise InputError(
            f'config.eval.stride = {stride} is for objectives that predict each token of a window by '
            'itself (causal, prefix, masked without pairs); set it to 0.'
        )
    packed = pack_split(split, objective, data.packing, stride)
    if not len(packed.rows):
        what = f"the source '{split.spec}'" if split.spec else 'the list of texts'
        raise InputError(
            f'{what} has no text of {objective.least} tokens, the least that the objective predicts from.'
        )
    padding = -len(packed.rows) % batch_size

    def fields(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if index < len(packed.rows):
            return packed.fields(packed.row(index), rng)
        row = packed.fields(packed.row(0), rng)
        return {name: np.zeros_like(value) for name, value in row.items()}

    count = len(packed.rows) + padding
    made = grain.MapDataset.range(count).random_map(fields, seed=0)
    return _batches_of(made, count // batch_size, batch_size, rows)


def _batches_of(
    stream: grain.MapDataset, count: int, batch_size: int, rows: HostRows
) -> grain.MapDataset:
    """Returns the rows of each of so many batches that this host makes, stacked."""
    here = rows.of(batch_size)

    def batch(number: int) -> Batch:
        made = [stream[number * batch_size + row] for row in here]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    return grain.MapDataset.range(count).map(batch)


def batches(dataset: grain.MapDataset, start: int = 0) -> Iterator[tuple[int, Batch]]:
    """Yields (i, batch i) from `start` on, made ahead in threads."""
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH)
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({'next_index': start})
    try:
        yield from enumerate(iterator, start)
    finally:
        iterator.close()


def chosen_rows(packed: Packed, data: DataConfig, seed: int) -> grain.MapDataset:
    """Returns the endless stream of rows, each a list of `Window`, before any tokens are read."""
    rows = (
        grain.MapDataset.range(len(packed.rows)).shuffle(seed=_derived(seed, 'shuffle')).repeat()
    ).map(packed.row)
    if not data.random_crop or 'window' not in packed.objective.takes:
        return rows
    split, objective = packed.split, packed.objective
    targets = split.lengths - objective.overlap
    room = _room(split, objective, packed.growth)

    def crop(row: list[Window], rng: np.random.Generator) -> list[Window]:
        return [_cropped(window, targets, int(room[window.document]), rng) for window in row]

    return rows.random_map(crop, seed=_derived(seed, 'crop'))


def _cropped(window: Window, targets: np.ndarray, length: int, rng: np.random.Generator) -> Window:
    """Moves a full window by 0 <= offset < `length` tokens, as far as its document reaches."""
    if window.size < length:
        return window
    room = int(targets[window.document]) - window.start - window.size
    offset = int(rng.integers(min(length, room + 1)))
    return dataclasses.replace(window, start=window.start + offset)


def _derived(seed: int, use: str) -> int:
    """Returns a seed of 32 bits for one use, independent of those for the others."""
    entropy = [seed % 2**64, *use.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
