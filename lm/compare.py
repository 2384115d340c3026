"""Several runs in one table and one page of curves."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm import page, predictions, tokenizer
from lm.config import flatten, tasks_as_dicts
from lm.errors import InputError, nearest
from lm.objectives import OBJECTIVES, loss_of_tokens
from lm.page import number, text
from lm.plots import Series, chart, smooth
from lm.writer import atomic_write, duration, plain, short

# What is compared of each split, the lowest being the best: key, name, and whether it compares
# between tokenizers.
_MEASURES = (
    ('perplexity', 'perplexity', False),
    ('bits_per_byte', 'bits/byte', True),
    ('word_perplexity', 'word perplexity', True),
)
# What says of what, and how, a task was measured; all else of a task is a measure. The highest is the best,
# but of a loss.
_BASIS = ('texts', 'questions', 'signature')
_RIGHT = ('accuracy', 'pearson')

Table = tuple[str, list[str], list[list[str]]]  # Title, head and rows.


def compare(workdirs: Sequence[str | Path], output: str | Path) -> str:
    """Compares finished runs: writes compare.md, compare.html and compare.json.

    Args:
        workdirs: the runs' folders, in the order of the table.
        output: the folder to write into.

    Returns:
        The comparison as text for the terminal.

    Raises:
        InputError: no run is given, one does not exist or has no finished report, or the output cannot
            be written.
    """
    if not workdirs:
        raise InputError('no runs to compare: give two or more, --runs=runs/a,runs/b.')
    folders = [Path(workdir) for workdir in workdirs]
    runs = [_load(folder) for folder in folders]
    labels = _labels(folders, runs)
    same_tokenizer = len({_tokenizer(f, r) for f, r in zip(folders, runs, strict=True)}) == 1
    splits = list(dict.fromkeys(split for run in runs for split in run['splits']))
    same_text = {split: _same(runs, lambda run, s=split: _size(run, s)) for split in splits}
    translated = predictions.compare(folders, labels, runs)
    tested = {title: len(rows) for title, _, rows in translated.tables}
    same_task = {
        task: _same(having, lambda run, t=task: _basis(run, t))
        for task in dict.fromkeys(task for run in runs for task in run['tasks'])
        # A translation's table has these measures too, if all runs are in it.
        if tested.get(task, 0) < len(having := [run for run in runs if task in run['tasks']])
    }
    tables = [
        *_split_tables(labels, runs, same_tokenizer, same_text),
        *translated.tables,
        *_task_tables(labels, runs, same_task),
        *_run_tables(labels, runs),
    ]
    notes = _notes(runs, same_tokenizer, same_text, same_task) + translated.notes
    output = Path(output)
    content = {
        'runs': [
            {'run': label, **{key: run[key] for key in _KEPT}}
            for label, run in zip(labels, runs, strict=True)
        ],
        'config': {
            key: dict(zip(labels, values, strict=True))
            for key, values in _differing_keys(runs).items()
        },
        'translations': translated.content,
        'notes': notes,
    }
    atomic_write(output / 'compare.json', json.dumps(plain(content), indent=2) + '\n')
    atomic_write(output / 'compare.md', _markdown(tables, notes))
    charts = _charts(labels, runs, same_tokenizer)
    atomic_write(output / 'compare.html', _html(labels, tables, notes, charts))
    parts = [
        page.text_table([title, *head[1:]], [[row[0], *map(_cut, row[1:])] for row in rows])
        for title, head, rows in tables
    ]
    return '\n\n'.join([*parts, '\n'.join(notes)]).rstrip() + '\n'


_KEPT = ('steps', 'parameters', 'seconds', 'splits', 'tasks', 'throughput')


def _load(folder: Path) -> dict[str, Any]:
    """Returns the report of a finished run."""
    if not folder.is_dir():
        siblings = [str(path) for path in folder.parent.glob('*') if path.is_dir()]
        raise InputError(f"run '{folder}' does not exist.{nearest(str(folder), siblings)}")
    path = folder / 'report.json'
    if not path.is_file():
        finished = [str(found.parent) for found in folder.parent.glob('*/report.json')]
        raise InputError(
            f"run '{folder}' has no report.json: train it to its end first."
            f'{nearest(str(folder), finished)}'
        )
    try:
        report = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"'{path}' is not whole JSON: train the run to its end again.") from None
    if not report['finished']:
        raise InputError(
            f"run '{folder}' is not finished (step {report['steps']} of "
            f'{report["config"]["train"]["steps"]}): the same command goes on from there.'
        )
    # A report may be older than runs of several tasks are.
    report['config'] = {'tasks': {}, 'multitask': {}, **report.get('config', {})}
    return report


def _labels(folders: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the runs' names, or their folders where two have the same name."""
    names = [run['name'] for run in runs]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _tokenizer(folder: Path, run: Mapping[str, Any]) -> str:
    """Returns what stands for the run's tokenizer: its file, or what it was made from."""
    for name in tokenizer.FILES:
        if (path := folder / name).is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    data = run['config']['data']
    sources = [corpus['source'] for corpus in data.get('corpora', {}).values()]
    return json.dumps([run['config']['tokenizer'], data['train'], *sources])


def _same(runs: Sequence[Mapping[str, Any]], key: Callable[[Any], Any]) -> bool:
    return len({json.dumps(key(run)) for run in runs}) == 1


def _size(run: Mapping[str, Any], split: str) -> list[int | None]:
    """Words and bytes of a split: where they differ, so does the text."""
    return [run['splits'].get(split, {}).get(key) for key in ('words', 'bytes')]


def _basis(run: Mapping[str, Any], task: str) -> list[Any]:
    """What a run's measures of a task rest on: where they differ, the numbers do not compare."""
    found = [run['tasks'][task].get(key) for key in _BASIS]
    configs = tasks_as_dicts(run['config'])
    config = configs[task.partition(' ')[0] if run['config']['tasks'] else '']
    if OBJECTIVES[config['objective']['name']].in_batch:
        rows = config['data']['batch_size'] // config['optimizer']['accumulation']
        found.append(config['eval']['batch_size'] or rows)
    return found


def _notes(
    runs: Sequence[Mapping[str, Any]],
    same_tokenizer: bool,
    same_text: Mapping[str, bool],
    same_task: Mapping[str, bool],
) -> list[str]:
    """Returns what a reader has to know before comparing the numbers, a sentence each."""
    notes = []
    if len(runs) > 1 and any((*same_text.values(), *same_task.values())):
        notes.append('A * marks the best of its column.')
    if not same_tokenizer:
        notes.append(
            'The tokenizers differ: compare bits per byte and word perplexity only, not loss or '
            'perplexity.'
        )
    notes += [
        f'The {split} text differs between the runs: its numbers do not compare.'
        for split, same in same_text.items()
        if not same
    ]
    notes += [
        f"The texts of '{task}', or how they are measured, differ between the runs: its numbers do not "
        'compare.'
        for task, same in same_task.items()
        if not same
    ]
    if not _same(
        runs, lambda run: [run['config']['data']['length'], run['config']['eval']['stride']]
    ):
        notes.append(
            'The windows of evaluation (data.length, eval.stride) differ: a longer context lowers '
            'every perplexity.'
        )
    return notes


def _split_tables(
    labels: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
    same_tokenizer: bool,
    same_text: Mapping[str, bool],
) -> list[Table]:
    """Returns one table a split: perplexity and its kin, and what other terms of the loss come to."""
    tables = []
    for split, same in same_text.items():
        found = [run['splits'].get(split, {}) for run in runs]
        others = dict.fromkeys(key for results in found for key in results if '/' in key)
        columns = []
        for key, name, between_tokenizers in (
            *_MEASURES,
            *((key, key.replace('/', ' '), False) for key in others),
        ):
            values = [results.get(key) for results in found]
            comparable = same and (same_tokenizer or between_tokenizers)
            columns.append((name, _marked(key, values, comparable)))
        tables.append(_table(split, labels, columns))
    return tables


def _task_tables(
    labels: Sequence[str], runs: Sequence[Mapping[str, Any]], same_task: Mapping[str, bool]
) -> list[Table]:
    """Returns one table a task and split, of the runs that have it."""
    tables = []
    for task, same in same_task.items():
        found = {
            label: run['tasks'][task]
            for label, run in zip(labels, runs, strict=True)
            if task in run['tasks']
        }
        keys = dict.fromkeys(key for results in found.values() for key in results)
        columns = [
            (key, _marked(key, [results.get(key) for results in found.values()], same))
            for key in keys
            if key not in _BASIS
        ]
        tables.append(_table(task, list(found), columns))
    return tables


def _marked(key: str, values: Sequence[float | None], comparable: bool) -> list[str]:
    """Returns a column's cells, the best of several that compare with a star."""
    lowest = key.rpartition('/')[2] in ('loss', *(name for name, _, _ in _MEASURES))
    some = [value for value in values if value is not None]
    best = (min if lowest else max)(some) if comparable and len(values) > 1 and some else None
    return [number(v) + '*' * (v is not None and v == best) for v in values]


def _table(title: str, labels: Sequence[str], columns: Sequence[tuple[str, list[str]]]) -> Table:
    """Returns a table of the columns in which some run has a number."""
    columns = [(name, cells) for name, cells in columns if {*cells} != {page.NOTHING}]
    head = ['run', *(name for name, _ in columns)]
    return title, head, [list(row) for row in zip(labels, *(c for _, c in columns), strict=True)]


def _run_tables(labels: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns a table of the runs, and one of the keys that differ."""
    rows = [
        [
            label,
            short(run['parameters']),
            number(run['steps']),
            page.NOTHING if (v := run['throughput']['tokens_per_second']) is None else short(v),
            duration(run['seconds']),
        ]
        for label, run in zip(labels, runs, strict=True)
    ]
    tables: list[Table] = [('runs', ['run', 'parameters', 'steps', 'tokens/s', 'time'], rows)]
    if keys := _differing_keys(runs):
        rows = [[key, *(text(value) for value in values)] for key, values in keys.items()]
        tables.append(('config', ['key', *labels], rows))
    return tables


def _cut(cell: str, most: int = 40) -> str:
    """Returns a cell that a terminal has room for."""
    return cell if len(cell) <= most else f'{cell[: most // 2 - 1]}…{cell[-most // 2 :]}'


def _differing_keys(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns `{key: [value in each run]}` of the config keys that are not the same in all."""
    leaves = [dict(flatten(run['config'])) for run in runs]
    keys = dict.fromkeys(key for run in leaves for key in run)
    return {
        key: [run.get(key) for run in leaves]
        for key in keys
        if any(run.get(key) != leaves[0].get(key) for run in leaves)
    }


def _charts(
    labels: Sequence[str], runs: Sequence[Mapping[str, Any]], same_tokenizer: bool
) -> list[str]:
    """Returns the figures: validation over steps, and over tokens if they differ; training; tasks.

    Losses of different tasks, or of the same in other proportions, are no two curves of one figure.
    """
    of_tokens = all(loss_of_tokens(run['config']) for run in runs)
    tasks = any(run['config']['tasks'] for run in runs)
    per_step = [
        run['config']['data']['batch_size'] * run['config']['data']['length'] for run in runs
    ]
    axes: list[tuple[str, Sequence[float]]] = [('steps', [1] * len(runs))]
    if len(set(per_step)) > 1:
        axes.append(('training tokens', per_step))
    in_nats = same_tokenizer or not of_tokens
    unit = ('loss (nats per token)' if of_tokens else 'loss') if in_nats else 'bits per byte'
    ones = [1.0] * len(runs)
    scales = ones if in_nats else [_bits_per_byte_of_a_nat(run) for run in runs]
    figures: list[str] = []

    def draw(
        title: str, name: str, x: tuple[str, Sequence[float]], y: tuple[str, Sequence[float]]
    ) -> None:
        (x_label, x_scales), (y_label, y_scales) = x, y
        series = [
            Series(
                label,
                [[x * fx, y * fy] for x, y in _curve(run, name) if math.isfinite(fy)],
                'line' if name == 'train/loss' else 'points',
                color,
            )
            for color, (label, run, fx, fy) in enumerate(
                zip(labels, runs, x_scales, y_scales, strict=True)
            )
        ]
        if any(one.points for one in series):
            svg = chart(
                series,
                x_label=x_label,
                y_label=y_label,
                prefix=f'figure{len(figures)}',
                perplexity=y_label == 'loss (nats per token)',
            )
            figures.append(page.figure(f'{title} over {x_label}', series, svg))

    for axis in axes:
        if _same(runs, _weights) or of_tokens and not tasks:
            draw('Validation', 'valid/loss', axis, (unit, scales))
        if in_nats and (_same(runs, _shares) or of_tokens and not tasks):
            draw('Training', 'train/loss', axis, (unit, scales))
    for title, name in _judged(runs, same_tokenizer).items():
        draw(title, name, axes[0], (name.rpartition('/')[2], ones))
    return figures


def _weights(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's validation loss is made of: objective and weights of each task."""
    keys, tasks = ('weight', 'final_weight'), run['config']['tasks']
    return {
        name: [part['objective']['name'], *(tasks.get(name, {}).get(key) for key in keys)]
        for name, part in tasks_as_dicts(run['config']).items()
    }


def _shares(run: Mapping[str, Any]) -> list[Any]:
    """What its training loss is made of."""
    return [_weights(run), run['config']['multitask']]


def _judged(runs: Sequence[Mapping[str, Any]], same_tokenizer: bool) -> dict[str, str]:
    """Returns by title the curves that each task is judged by: its loss, or what is told rightly."""
    found = {}
    for run in runs:
        for task, part in tasks_as_dicts(run['config']).items():
            of_tokens = OBJECTIVES[part['objective']['name']].of_tokens
            kinds = ('loss',) * (bool(task) and same_tokenizer) if of_tokens else _RIGHT
            for kind in kinds:
                name = '/'.join(filter(None, ('valid', task, kind)))
                if run['curves'].get(name):
                    found[f'Validation {kind}{" of " * bool(task)}{task}'] = name
    return found


def _curve(run: Mapping[str, Any], name: str) -> list[list[float]]:
    points = [(x, y) for x, y in run['curves'].get(name, ()) if y is not None]
    return smooth(points) if name == 'train/loss' else [list(point) for point in points]


def _bits_per_byte_of_a_nat(run: Mapping[str, Any]) -> float:
    """Returns the factor from nats a token to bits a byte, on the validation text."""
    valid = run['splits'].get('valid')
    if not valid or not valid['bytes']:
        return math.nan
    return valid['tokens'] / valid['bytes'] / math.log(2)


_TITLES = {'runs': 'Runs', 'config': 'Config keys that differ'}


def _markdown(tables: Sequence[Any], notes: Sequence[str]) -> str:
    parts = ['# Comparison\n', *(note + '\n' for note in notes)]
    for title, head, rows in tables:
        parts += [f'## {_TITLES.get(title, title)}\n', page.markdown_table(head, rows)]
    return '\n'.join(parts)


def _html(
    labels: Sequence[str], tables: Sequence[Any], notes: Sequence[str], charts: Sequence[str]
) -> str:
    parts = [f'<p class="note">{page.escape(note)}</p>' for note in notes]
    parts += [
        page.section(_TITLES.get(title, title), page.table(head, rows))
        for title, head, rows in tables
    ]
    if charts:
        body = page.section('Curves', f'<div class="charts">{"".join(charts)}</div>')
        parts.insert(len(parts) - (tables[-1][0] == 'config'), body)
    return page.page('Comparison', ' · '.join(labels), '\n'.join(parts))
