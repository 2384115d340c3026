"""What a corpus is made from, and where: the plan that all of its tasks share."""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.data import corpus_shards, files
from lm.data.corpus import ledger, options
from lm.data.corpus.options import Options
from lm.data.source import Source
from lm.writer import atomic_write

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


def save(path: Path, values: np.ndarray) -> None:
    """Writes an array as .npy; the file is whole, or is not there."""
    data = io.BytesIO()
    np.save(data, values)
    atomic_write(path, data.getvalue())
