"""Translations that runs keep, and whether one run's are better than another's by more than chance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm import page
from lm.errors import InputError
from lm.writer import atomic_write

Line = dict[str, str]
_KEYS = ('source', 'target', 'prediction')
# Name of the metric in `lm.metrics` -> its name for people, and the keys of `config.eval` that it reads.
_METRICS = {
    'bleu': ('BLEU', {'tokenizer': 'bleu_tokenizer', 'lowercase': 'lowercase'}),
    'chrf': ('chrF', {'lowercase': 'lowercase'}),
}
_SAMPLES = 1000


def write(folder: Path, task: str, lines: Sequence[Line]) -> None:
    """Writes the translations of `SPLIT, WAY` or `TASK SPLIT, WAY`, as a report calls them.

    They are in `folder/SPLIT.WAY.jsonl`, or in `folder/TASK/`: `source`, `target`, `prediction` a line.
    """
    text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
    atomic_write(folder / _file(task), text)


def read(folder: Path, task: str) -> list[Line] | None:
    """Returns what `write` wrote, or None where it is not there.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / _file(task)
    if not path.is_file():
        return None
    try:
        # A text may hold what `splitlines` splits at.
        lines = path.read_text(encoding='utf-8').removesuffix('\n').split('\n')
        return [{key: found[key] for key in _KEYS} for found in map(json.loads, lines)]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"'{path}' is damaged: train the run to its end again.") from None


def _file(task: str) -> Path:
    named, _, way = task.partition(', ')
    folder, _, split = named.rpartition(' ')
    return Path(folder) / f'{split}.{way.replace(" ", "")}.jsonl'


class Compared(NamedTuple):
    """What the translations of several runs say of each other.

    Attributes:
        tables: title, head and rows.
        notes: a sentence each.
        content: `{task: {run: {metric: result}}}` of the runs but the baseline, for programs; a result is
            that of `lm.metrics.paired_bootstrap`, with the baseline's name.
    """

    tables: list[tuple[str, list[str], list[list[str]]]]
    notes: list[str]
    content: dict[str, dict[str, Any]]


def compare(
    folders: Sequence[Path], labels: Sequence[str], reports: Sequence[Mapping[str, Any]]
) -> Compared:
    """Compares translations of the same texts by paired bootstrap resampling, each run with the first.

    Args:
        folders: workdirs.
        labels: what the runs are called.
        reports: their reports; `tasks` and `config` are read.

    Raises:
        InputError: translations cannot be read.
    """
    found = Compared([], [], {})
    for task in dict.fromkeys(task for report in reports for task in report['tasks']):
        kept = {
            label: (lines, report['config']['eval'])
            for folder, label, report in zip(folders, labels, reports, strict=True)
            if task in report['tasks'] and (lines := read(folder / 'predictions', task))
        }
        if len(kept) > 1:
            _compare_task(task, kept, found)
    if found.tables:
        signatures = {
            f'{_METRICS[metric][0]} {result["signature"]}'
            for runs in found.content.values()
            for results in runs.values()
            for metric, result in results.items()
        }
        found.notes.append(
            'Translations are compared with those of the first run by paired bootstrap resampling '
            f'(Koehn 2004; {_SAMPLES:,} samples): the difference with its 95 % interval, and p of the '
            'hypothesis that both runs are equally good.'
        )
        found.notes.append('; '.join(sorted(signatures)))
    return found


def _compare_task(task: str, kept: Mapping[str, tuple[list[Line], Any]], found: Compared) -> None:
    """Adds a table, or why there is none, and what it says."""
    from lm import metrics  # sacreBLEU takes a while to import.

    (first, (lines, options)), *others = kept.items()
    targets, baseline = _column(lines, 'target'), _column(lines, 'prediction')
    results: dict[str, dict[str, Any]] = {}
    for label, (theirs, their_options) in others:
        if [_column(theirs, key) for key in _KEYS[:2]] != [_column(lines, 'source'), targets]:
            found.notes.append(
                f"'{first}' and '{label}' translated other texts ({task}): no test of the difference."
            )
            continue
        keys = {key for _, read in _METRICS.values() for key in read.values()}
        if differ := sorted(key for key in keys if options[key] != their_options[key]):
            found.notes.append(
                f"'{first}' and '{label}' differ in config.eval.{differ[0]} ({task}): no test of the "
                'difference.'
            )
            continue
        results[label] = {
            metric: {'baseline': first}
            | metrics.paired_bootstrap(
                targets,
                baseline,
                _column(theirs, 'prediction'),
                metric,
                _SAMPLES,
                **{name: options[key] for name, key in read.items()},
            )
            for metric, (_, read) in _METRICS.items()
        }
    if results:
        found.content[task] = results
        found.tables.append(_table(task, first, results))


def _column(lines: Sequence[Line], key: str) -> list[str]:
    return [line[key] for line in lines]


def _table(
    task: str, first: str, results: Mapping[str, Mapping[str, Any]]
) -> tuple[str, list[str], list[list[str]]]:
    head, rows = ['run'], [[label] for label in (first, *results)]
    for metric, (name, _) in _METRICS.items():
        found = [run[metric] for run in results.values()]
        scores = [found[0]['a'], *(result['b'] for result in found)]
        best = max(scores)
        head += [name, 'difference', '95 % interval', 'p']
        rows[0] += [_score(scores[0], best), *[page.NOTHING] * 3]
        for row, result in zip(rows[1:], found, strict=True):
            low, high = result['interval']
            row += [
                _score(result['b'], best),
                f'{result["difference"]:+.2f}',
                f'[{low:+.2f}, {high:+.2f}]',
                f'{result["p"]:.3f}',
            ]
    return task, head, rows


def _score(score: float, best: float) -> str:
    return f'{score:.2f}' + '*' * (score == best)
