"""The road from raw files to a corpus: stages of tasks that datatrove's executors run, anywhere.

    index   what models will be evaluated on                                      1 task
    clean   a shard's documents through the steps; hashes of what is left         a task a shard
    exact   what occurred before, letter by letter                                tasks of ranges of hashes
    near    documents that agree in a band of hashes (datatrove's)                tasks of bands
    groups  which of them are near duplicates                                     1 task
    write   the others, by split                                                  a task a shard

What a shard is follows from the input alone, so that the result does not depend on how many tasks run at
once. A task writes files that are whole or not there, and is not done again once it is.
"""

import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

from lm.config import digest
from lm.data import corpus_shards, files
from lm.data.corpus import contamination, exact, executors, ledger, near, options, steps, words
from lm.data.corpus.options import Options
from lm.data.source import Source
from lm.errors import InputError
from lm.writer import atomic_write

VERSION = 1  # Of the corpus' files.
_PACKED = 4  # Packed files are about so many times as large when unpacked.


class Shard(NamedTuple):
    """What one task reads: a whole source, or some of its files.

    Attributes:
        source: its name.
        spec: as in the config.
        paths: the files; none where the source has none that could be read alone.
        stamp: a JSON value that is another when what is read is: sizes and times of files.
    """

    source: str
    spec: str
    paths: tuple[str, ...]
    stamp: Any


def plan(chosen: Options) -> list[Shard]:
    """Returns the shards of all sources, in their order.

    Raises:
        InputError: a source cannot be read.
    """
    found = []
    least = chosen.run.shard_mb * 1_000_000
    specs = {text.partition('=')[0]: text.partition('=')[2] for text in chosen.sources}
    for name, source in options.named(chosen.sources, chosen, 'config.sources').items():
        if not (source.part.is_all and source.paths):
            found.append(Shard(name, specs[name], (), _stamp(source)))
            continue
        paths, weight = [], 0.0
        for path in source.paths:
            paths.append(path)
            weight += path.stat().st_size * (_PACKED if path.suffix in files.UNPACKERS else 1)
            if weight >= least or path == source.paths[-1]:
                stamp = [_stamp_of(path) for path in paths]
                found.append(Shard(name, specs[name], tuple(map(str, paths)), stamp))
                paths, weight = [], 0.0
    return found


def evaluation(chosen: Options) -> dict[str, Any]:
    """Returns a JSON value for each evaluation set, which is another when the set is.

    Raises:
        InputError: one cannot be read.
    """
    place = 'config.contamination.evaluation'
    sets = options.named(chosen.contamination.evaluation, chosen, place)
    return {name: _stamp(source) for name, source in sets.items()}


def _stamp(source: Source) -> Any:
    if source.paths:
        return [_stamp_of(path) for path in source.paths]
    return source.identity()


def _stamp_of(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


@dataclasses.dataclass(frozen=True)
class Work:
    """Where everything is; what all tasks of a corpus share.

    Attributes:
        folder: of the corpus.
        options: what is made.
        shards: what of.
        evaluation: of each evaluation set what says whether it has changed.
    """

    folder: Path
    options: Options
    shards: tuple[Shard, ...]
    evaluation: dict[str, Any]

    def path(self, *parts: str) -> Path:
        """Returns a path in the folder of intermediate files."""
        return self.folder.joinpath('.work', *parts)

    def cleaned(self, shard: int) -> Path:
        return self.path('clean', f'{shard:05d}.jsonl.zst')

    def notes(self, stage: str, shard: int) -> Path:
        return self.path('notes', stage, f'{shard:05d}.json')

    @functools.cached_property
    def format(self) -> corpus_shards.Format:
        return corpus_shards.FORMATS[self.options.output.format]

    def ledger(self, stage: str) -> ledger.Ledger:
        """Returns the account of a stage over all shards."""
        paths = (self.notes(stage, shard) for shard in range(len(self.shards)))
        return ledger.read(paths, self.options.report.examples)


executors.log_to_files_only()  # In each process that does a task.


class Stage(PipelineStep):
    """One of the stages: a step of datatrove's pipelines that reads and writes for itself."""

    type = 'corpus'

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Does the task with this number."""
        if multiprocessing.parent_process():  # Ctrl-C is the matter of the process that waits.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.task(rank, world_size)

    def task(self, rank: int, tasks: int) -> None:
        """Does the task `rank` of so many."""
        raise NotImplementedError


# --- stages ----------------------------------------------------------------------------------------


class Index(Stage):
    name = 'index'

    def task(self, rank: int, tasks: int) -> None:
        chosen = self.work.options
        place = 'config.contamination.evaluation'
        sets = options.named(chosen.contamination.evaluation, chosen, place)
        rules = [step.rule for step in steps.build(chosen) if step.name in steps.CHANGING]
        texts = {name: _cleaned(source, rules) for name, source in sets.items()}
        built = contamination.build(texts, chosen.contamination)
        contamination.save(built, self.work.path('evaluation.npz'))


def _cleaned(source: Source, rules: list[steps.Rule]) -> Iterator[str]:
    """Yields texts as documents are that are compared with them."""
    for text in source.documents():
        document = Document(text, '')
        for rule in rules:
            rule(document)
        yield document.text


class Clean(Stage):
    name = 'clean'

    def task(self, rank: int, tasks: int) -> None:
        work, chosen = self.work, self.work.options
        shard = work.shards[rank]
        account = ledger.Ledger(chosen.report.examples)
        every = steps.build(chosen)
        todo = [step for step in every if not step.sources or shard.source in step.sources]
        evaluation = work.path('evaluation.npz')
        index = contamination.load(evaluation) if evaluation.exists() else None
        last = ['contamination'] * (index is not None)
        for name in ('reading', *(step.name for step in every), *last, 'hashing'):
            account.step(name)  # In this order, whatever a shard's sources are.
        prints = _Fingerprints(chosen)
        output = work.cleaned(rank)
        output.parent.mkdir(parents=True, exist_ok=True)
        with corpus_shards.JsonlWriter(output) as writer:
            begun = time.perf_counter()
            for document in _read(shard, chosen):
                account.note('reading', document.text, document.text, '', begun)
                account.came(shard.source, ledger.utf8(document.text))
                dropped = _through(document, todo, account)
                if not dropped:
                    hashed = prints.words(document.text, account)
                    dropped = _contaminated(document, hashed, index, account)
                if dropped:
                    _plant(account, document, dropped, chosen)
                else:
                    prints.add(document.text, hashed, account)
                    writer.write(corpus_shards.to_line(_record(document, shard.source)))
                begun = time.perf_counter()
            prints.write(work, rank)
        _write_notes(work.notes(self.name, rank), account)


def _read(shard: Shard, chosen: Options) -> Iterator[Document]:
    source = options.open_source(shard.spec, chosen)
    if shard.paths:
        found = (d for path in shard.paths for d in source.read_one(Path(path)))
    else:
        found = source.part.apply(source.read)
    for document in found:
        kept: dict[str, Any] = {}
        for name, _, value in (code.partition('=') for code in document.codes):
            before = kept.get(name)  # A list comes as several.
            kept[name] = value if before is None else [*_several(before), value]
        yield Document(document.text.strip('\r\n'), '', metadata=kept)


def _several(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _through(document: Document, todo: list[steps.Step], account: ledger.Ledger) -> str:
    """Takes a document through the steps; returns the one that drops it, '' if none does."""
    for step in todo:
        before, begun = document.text, time.perf_counter()
        reason = step.rule(document)
        account.note(step.name, before, document.text, reason, begun)
        if reason:
            return step.name
    return ''


def _contaminated(
    document: Document,
    hashed: np.ndarray,
    index: contamination.Index | None,
    account: ledger.Ledger,
) -> str:
    if index is None:
        return ''
    begun = time.perf_counter()
    found = contamination.of(hashed, index)
    account.note('contamination', document.text, document.text, found, begun)
    return 'contamination' if found else ''


def _record(document: Document, source: str) -> corpus_shards.Json:
    """Returns a record; its id is of its text after cleaning, and so is its split."""
    name = digest(document.text)[:16]
    return {'text': document.text, 'id': name, 'source': source, **document.metadata}


def _plant(account: ledger.Ledger, found: Any, dropped: str, chosen: Options) -> None:
    """Notes what became of a document that was planted; `found` is a Document or a record."""
    if chosen.report.planted:
        fields = found.metadata if isinstance(found, Document) else found
        account.plant(str(fields.get(chosen.report.planted, '')), dropped)


def _became(record: corpus_shards.Json) -> str:
    """Says of a kept document whether it is what it should be, where its field `truth` tells."""
    if not record.get('truth'):
        return 'kept'
    same = record['text'].split() == record['truth'].split()
    return 'restored' if same else 'kept, not restored'


class _Fingerprints:
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
            _save(work.path('hashes', level, f'{rank:05d}.npy'), every)
        if self._minhash:
            width = self._options.bands * self._options.rows
            signatures = np.frombuffer(self._signatures, np.uint32).reshape(-1, width)
            near.write_bands(work.path('bands'), rank, signatures, self._options)
            _save(work.path('signatures', f'{rank:05d}.npy'), signatures)


class Exact(Stage):
    name = 'exact'

    def task(self, rank: int, tasks: int) -> None:
        work = self.work
        names = [f'{shard:05d}.npy' for shard in range(len(work.shards))]
        for level in exact.levels(work.options.duplicates):
            paths = [work.path('hashes', level, name) for name in names]
            for number in range(rank, exact.PARTITIONS, tasks):
                parts = [exact.partition(path, number) for path in paths]
                found = exact.find(parts, level, work.options.duplicates)
                _save(work.path('exact', level, f'{number:03d}.npy'), found)


class Near(Stage):
    name = 'near'

    def task(self, rank: int, tasks: int) -> None:
        config = near.config(self.work.options.duplicates)
        bands, pairs = self.work.path('bands'), self.work.path('pairs')
        search = MinhashDedupBuckets(str(bands), str(pairs), config=config, lines_to_buffer=1000)
        for band in range(rank, config.num_buckets, tasks):
            search.run(None, band, config.num_buckets)


class Groups(Stage):
    name = 'groups'

    def task(self, rank: int, tasks: int) -> None:
        work, chosen = self.work, self.work.options
        found = near.pairs(work.path('pairs'))
        exactly = [np.load(path) for path in sorted(work.path('exact', 'document').glob('*.npy'))]
        found = near.without(found, np.concatenate([*exactly, np.zeros(0, exact.REMOVED)]))
        files = (work.path('signatures', f'{shard:05d}.npy') for shard in range(len(work.shards)))
        signatures = [np.load(path, mmap_mode='r') for path in files]
        similar = near.similarities(found, signatures)
        least = chosen.duplicates.near
        _save(work.path('near.npy'), near.removed(found, signatures, least))
        pairs = near.shown(found, similar, chosen.report.pairs, least)
        counts = np.histogram(similar, np.linspace(0, 1, 51))[0].tolist()
        told = {'pairs': pairs, 'histogram': counts}
        atomic_write(work.path('near.json'), json.dumps(told))


class Write(Stage):
    name = 'write'

    def task(self, rank: int, tasks: int) -> None:
        work, chosen = self.work, self.work.options
        account = ledger.Ledger(chosen.report.examples)
        repeats = _Repeats(work, rank)
        written: dict[str, int] = {}
        with contextlib.ExitStack() as shards:
            writers: dict[str, Any] = {}
            for number, line in enumerate(corpus_shards.read_jsonl(work.cleaned(rank))):
                record = json.loads(line)
                dropped = repeats.judge(number, record, account)
                _plant(account, record, dropped or _became(record), chosen)
                if dropped:
                    continue
                split = split_of(record['id'], chosen.split)
                if split not in writers:
                    path = self._path(split, rank)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writers[split] = shards.enter_context(work.format.writer(path))
                writers[split].write(corpus_shards.to_line(record))
                written[split] = written.get(split, 0) + 1
                text = record['text']
                account.stayed(record['source'], ledger.utf8(text), words.count(text))
        made = {
            split: corpus_shards.describe(work.folder, self._path(split, rank), count)
            for split, count in written.items()
        }
        _write_notes(work.notes(self.name, rank), account, shards=made)

    def _path(self, split: str, rank: int) -> Path:
        return self.work.folder / split / f'{rank:05d}{self.work.format.end}'


class Manifest(Stage):
    name = 'manifest'

    def task(self, rank: int, tasks: int) -> None:
        work = self.work
        splits: dict[str, list[corpus_shards.Json]] = {split: [] for split in corpus_shards.SPLITS}
        for shard in range(len(work.shards)):
            notes = json.loads(work.notes('write', shard).read_text())
            for split, made in notes['shards'].items():
                splits[split].append(made)
        made = {'version': VERSION, 'format': work.options.output.format, 'splits': splits}
        atomic_write(work.folder / corpus_shards.MANIFEST, json.dumps(made, indent=1))


class _Repeats:
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


def split_of(name: str, split: options.Split) -> str:
    """Returns the split of a document by its id: the same whatever else is in the corpus."""
    place = int(digest([name, split.salt])[:13], 16) / 16**13
    if place < split.valid:
        return 'valid'
    return 'test' if place < split.valid + split.test else 'train'


def _save(path: Path, values: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, values)
    atomic_write(path, data.getvalue())


def _write_notes(path: Path, account: ledger.Ledger, **more: Any) -> None:
    atomic_write(path, json.dumps({'ledger': account.to_json(), **more}))


def stages(work: Work) -> list[tuple[Stage, int]]:
    """Returns the stages of a corpus, each with its number of tasks."""
    chosen, count = work.options, len(work.shards)
    found: list[tuple[Stage, int]] = []
    if chosen.contamination.evaluation:
        found.append((Index(work), 1))
    found.append((Clean(work), count))
    if exact.levels(chosen.duplicates):
        found.append((Exact(work), min(exact.PARTITIONS, count)))
    if chosen.duplicates.near:
        found += [(Near(work), min(chosen.duplicates.bands, count)), (Groups(work), 1)]
    return [*found, (Write(work), count)]


def check_some_left(work: Work, stage: str) -> None:
    """Raises InputError where nothing is left after a stage: it names the step that took most.

    Or where a source held nothing to begin with.
    """
    account = work.ledger(stage)
    came = {name for name, counts in account.sources.items() if counts[0] or stage == 'write'}
    for shard in work.shards:
        if stage == 'clean' and shard.source not in came:
            raise InputError(f"the source '{shard.source}={shard.spec}' holds no documents.")
    left = account.step('hashing')['documents'] if stage == 'clean' else account.lengths.total()
    if not left:
        dropped = {n: s for n, s in account.steps.items() if s['documents'] > s['kept']}
        name, step = max(dropped.items(), key=lambda item: item[1]['documents'] - item[1]['kept'])
        reasons = sorted(step['reasons'].items(), key=lambda item: -item[1])
        told = ', '.join(f'{reason}: {count:,}' for reason, count in reasons[:3])
        raise InputError(
            f"nothing is left: the step '{name}' dropped {step['documents'] - step['kept']:,} of the "
            f'{step["documents"]:,} documents that reached it ({told}). Change config.clean.'
        )
