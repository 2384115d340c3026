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
import json
import multiprocessing
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

from lm.config import digest
from lm.data import corpus_shards
from lm.data.corpus import contamination, exact, executors, ledger, near, options, steps, words
from lm.data.corpus.options import Options
from lm.data.corpus.repeats import Fingerprints, Repeats
from lm.data.corpus.work import Shard, Work, save
from lm.data.source import Source
from lm.errors import InputError
from lm.writer import atomic_write

VERSION = 1  # Of the corpus' files.

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
        prints = Fingerprints(chosen)
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
                save(work.path('exact', level, f'{number:03d}.npy'), found)


class Near(Stage):
    name = 'near'

    def task(self, rank: int, tasks: int) -> None:
        _open_many_files()
        config = near.config(self.work.options.duplicates)
        bands, pairs = self.work.path('bands'), self.work.path('pairs')
        search = MinhashDedupBuckets(str(bands), str(pairs), config=config, lines_to_buffer=1000)
        for band in range(rank, config.num_buckets, tasks):
            search.run(None, band, config.num_buckets)


def _open_many_files() -> None:
    """Lets this process open as many files as the system allows it: the search opens one a shard."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Groups(Stage):
    name = 'groups'

    def task(self, rank: int, tasks: int) -> None:
        work, chosen = self.work, self.work.options
        found = near.pairs(work.path('pairs'))
        files = (work.path('signatures', f'{shard:05d}.npy') for shard in range(len(work.shards)))
        signatures = [np.load(path, mmap_mode='r') for path in files]
        least = chosen.duplicates.near
        save(work.path('near.npy'), near.removed(found, signatures, least))
        # Exact duplicates have led to others, and are no news by themselves.
        exactly = [np.load(path) for path in sorted(work.path('exact', 'document').glob('*.npy'))]
        found = near.without(found, np.concatenate([*exactly, np.zeros(0, exact.REMOVED)]))
        similar = near.similarities(found, signatures)
        pairs = near.shown(found, similar, chosen.report.pairs, least)
        counts = np.histogram(similar, np.linspace(0, 1, 51))[0].tolist()
        told = {'pairs': pairs, 'histogram': counts}
        atomic_write(work.path('near.json'), json.dumps(told))


class Write(Stage):
    name = 'write'

    def task(self, rank: int, tasks: int) -> None:
        work, chosen = self.work, self.work.options
        account = ledger.Ledger(chosen.report.examples)
        repeats = Repeats(work, rank)
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


def split_of(name: str, split: options.Split) -> str:
    """Returns the split of a document by its id: the same whatever else is in the corpus."""
    place = int(digest([name, split.salt])[:13], 16) / 16**13
    if place < split.valid:
        return 'valid'
    return 'test' if place < split.valid + split.test else 'train'


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
