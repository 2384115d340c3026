"""What `python -m lm.corpus` finds, what it makes of real text, and how fast it is.

    python -m experiments.corpus planted      # faults that were planted: recall and precision
    python -m experiments.corpus real         # English, Chinese, and Python's sources: the funnel
    python -m experiments.corpus speed        # MB/s of each step, and the peak of memory

Each adds a line to `results.jsonl`; the report of each is in `--output`. The first two read $LM_DATA_DIR.
"""

import argparse
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.corpus import library, planted
from lm import corpus
from lm.data.corpus import steps
from lm.environment import host

HERE = Path(__file__).parent
_SMALL = 100_000_000  # Bytes.


def planted_faults(data: Path, output: Path, size: int) -> dict[str, Any]:
    """Makes a corpus of good documents and of some with faults."""
    raw = output / 'raw' / 'planted'
    planted.write(data, raw)
    config = corpus.get_config(
        'base',
        sources=tuple(
            f'{name}=jsonl:{raw}/{name}.jsonl#text{{fault,truth}}' for name in ('good', 'planted')
        ),
        # The rules of quality are no faults: what they drop of film reviews is told under `real`.
        clean={'languages': ('en', 'zh'), 'filters': ()},
        contamination={'evaluation': (f'hellaswag=jsonl:{raw}/evaluation.jsonl#text',)},
        duplicates={'boilerplate': 20},
        report={'planted': 'fault'},
    )
    return corpus.build(config, output / 'planted')


def real_text(data: Path, output: Path, size: int) -> dict[str, Any]:
    """Makes a corpus of English, Chinese poems, and the standard library's sources and docstrings."""
    poems = f'{data}/chinese_poetry'
    raw = output / 'raw' / 'real'
    library.write(raw, sum(path.stat().st_size for path in library.files()))
    config = corpus.get_config(
        'base',
        sources=(
            f'wikitext=paragraphs:{data}/wikitext2/*.txt.gz',
            f'imdb=jsonl:{data}/imdb_subset/*.jsonl.gz',
            f'news=tsv:{data}/ag_news/train_5k.tsv.gz#1',
            f'war_and_peace=paragraphs:{data}/warandpeace/*.txt.gz',
            f'shakespeare=paragraphs:{data}/tinyshakespeare/*.txt.gz',
            f'songci=paragraphs:{poems}/songci_*.txt.gz',
            f'tang=paragraphs:{poems}/tang_*.txt.gz',
            f'library=jsonl:{raw}/000.jsonl',
            'docstrings=builtin:pydocs',
        ),
        clean={
            'languages': ('en', 'zh'),
            'filters': ('gopher_repetition@imdb', 'gopher_quality@imdb'),
        },
        contamination={
            'evaluation': (
                f'hellaswag=jsonl:{data}/hellaswag/val.jsonl.gz#ctx',
                f'sst2=tsv:{data}/sst2/test.tsv.gz#sentence',
                f'ag_news=tsv:{data}/ag_news/test.tsv.gz#1',
            )
        },
        duplicates={'exact': ('document', 'paragraph')},
    )
    return corpus.build(config, output / 'real')


def speed(data: Path, output: Path, size: int) -> dict[str, Any]:
    """Makes a corpus of `size` bytes of the standard library's sources, and measures it.

    Up to 100 MB with all filters, to have the speed of each; above without, as suits sources.
    """
    raw = output / 'raw' / 'speed'
    written = library.write(raw, size)
    config = corpus.get_config(
        'base',
        sources=(f'library=jsonl:{raw}/*.jsonl',),
        clean={'filters': tuple(steps.FILTERS) * (size <= _SMALL)},
        run={'shard_mb': 8.0 if size <= _SMALL else 64.0},
    )
    watch = _Memory()
    begun = time.perf_counter()
    found = corpus.build(config, output / 'speed')
    seconds = time.perf_counter() - begun
    return {
        **found,
        'bytes': written,
        'seconds': seconds,
        'mb_per_second': written / 1e6 / seconds,
        'peak_resident_mb': watch.stop() / 1e6,
    }


class _Memory:
    """Measures the most that this process and its children hold together, in bytes."""

    def __init__(self) -> None:
        self._peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import psutil

        this = psutil.Process()
        while not self._ended.wait(0.3):
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # It has ended.
            self._peak = max(self._peak, total)

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak


CASES: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    'planted': planted_faults,
    'real': real_text,
    'speed': speed,
}


def main() -> None:
    """Runs one case and keeps what it found."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.corpus',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('case', choices=CASES)
    parser.add_argument('--mb', type=int, default=50, help='speed: text, in MB (default: 50)')
    parser.add_argument('--output', type=Path, default=Path('corpora/experiments'))
    options = parser.parse_args()
    for folder in (options.output, options.output / 'raw'):
        shutil.rmtree(folder / options.case, ignore_errors=True)
    data = Path(os.environ.get('LM_DATA_DIR') or '../shared/data').resolve()
    found = CASES[options.case](data, options.output, options.mb * 10**6)
    for step in found['steps']:
        step.pop('examples')
    kept = ('steps', 'sources', 'splits', 'planted', 'contamination', 'bytes', 'seconds')
    kept += ('mb_per_second', 'peak_resident_mb')
    line = {'case': options.case, **{key: found[key] for key in kept if key in found}}
    line['environment'] = host(('datatrove', 'ftfy', 'py3langid'))
    with (HERE / 'results.jsonl').open('a') as file:
        file.write(json.dumps(line, ensure_ascii=False) + '\n')


if __name__ == '__main__':
    main()
