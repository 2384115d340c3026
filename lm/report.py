"""The report of a run: report.json for programs, report.md for git, report.html for people.

The comparison of several runs and the plot of a learning-rate range test are here too, by name.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm import page, run_page
from lm.compare import compare
from lm.config import differences, flatten, tasks_as_dicts
from lm.environment import environment
from lm.objectives import OBJECTIVES, loss_of_tokens
from lm.page import number, text
from lm.plots import (
    Series,
    chart,
    learning_rate_plot,
    smooth,
    suggest_learning_rate,
    thin,
)
from lm.writer import atomic_write, duration, plain, read_metrics, short

__all__ = [
    'compare',
    'curves',
    'environment',
    'learning_rate_plot',
    'suggest_learning_rate',
    'write',
]

# The keys of report.json, in order.
KEYS = (
    'name',
    'steps',
    'parameters',
    'active_parameters',
    'seconds',
    'finished',
    'splits',
    'tasks',
    'corpora',
    'throughput',
    'goodput',
    'profile',
    'curves',
    'samples',
    'environment',
    'config',
    'history',
)

# The columns of a perplexity table: key, name, and digits shown.
SPLIT_COLUMNS = (
    ('loss', 'loss (nats/token)', 5),
    ('perplexity', 'perplexity', 4),
    ('bits_per_byte', 'bits per byte', 4),
    ('word_perplexity', 'word perplexity', 4),
    ('tokens', 'tokens', 4),
    ('words', 'words', 4),
    ('bytes', 'bytes', 4),
)

# The charts: title, curves, label of the y axis (of the loss, its unit may follow). Curves of other names
# come after them.
CHARTS = (
    ('Loss', ('train/loss', 'valid/loss'), 'loss'),
    ('Learning rate', ('train/learning_rate',), 'learning rate'),
    ('Throughput', ('train/tokens_per_second',), 'tokens per second'),
    ('Gradient norm', ('train/grad_norm',), 'global norm of the gradient'),
    (
        'Load of experts',
        ('train/experts/load', 'train/experts/worst_load', 'valid/experts/load'),
        'busiest / mean, of a batch',
    ),
)

# The columns of the table of experts, as `SPLIT_COLUMNS`: means over tokens and layers.
EXPERT_COLUMNS = (
    ('load', 'busiest expert / mean'),
    ('worst_load', 'in the worst layer'),
    ('dropped', 'dropped'),
    ('balance', 'balance loss'),
    ('z', 'router z-loss'),
)

# Curves that are drawn twice: pale as logged, and smoothed.
_NOISY = ('train/loss', 'train/grad_norm', 'train/tokens_per_second')

_JSON_POINTS, _HTML_POINTS = 20_000, 1_000


_UNFINISHED = (
    'This run stopped before its last step. The same command goes on from its last checkpoint; '
    'perplexities and samples come at the end.'
)

_CORPORA_NOTE = (
    'Rows and tokens are those of one epoch. Epochs: how often each row was seen, up to the last step that '
    'was taken.'
)


def curves(workdir: str | Path) -> dict[str, list[list[float]]]:
    """Returns what a run logged, from its metrics.jsonl: `{'train/loss': [[10, 8.31], ...]}`.

    A step that was logged twice counts once, as the last line has it. A curve of more than 20,000
    points is thinned, without losing its spikes.
    """
    found: dict[str, dict[int, float]] = {}
    for line in read_metrics(workdir):
        for name, value in line.items():
            if name not in ('step', 'time') and isinstance(value, int | float):
                found.setdefault(name, {})[line['step']] = value
    return {
        name: thin([list(point) for point in sorted(values.items())], _JSON_POINTS)
        for name, values in found.items()
    }


def write(workdir: str | Path, report: Mapping[str, Any], defaults: Mapping[str, Any]) -> Path:
    """Writes report.json, report.md and report.html into the workdir.

    Args:
        workdir: the run's folder.
        report: all of `KEYS`. `finished` is a bool; a sample is `{'prompt': str, 'text': str}`, where
            `text` is what follows the prompt, and of several tasks `'task'`; a corpus is as
            `lm.data.blend.Blend.seen` has it, and so of several tasks; an entry of `history` is a
            dict such as `{'event': 'resume', 'step': 250, 'time': seconds since 1970}`.
        defaults: the base config as nested dicts, to mark what differs from it.

    Returns:
        The path of report.html.

    Raises:
        InputError: the folder cannot be written.
    """
    workdir = Path(workdir)
    report = plain({key: report[key] for key in KEYS})
    defaults = plain(defaults)
    report['curves'] = {k: thin(v, _JSON_POINTS) for k, v in report['curves'].items()}
    atomic_write(workdir / 'report.json', to_json(report))
    atomic_write(workdir / 'report.md', markdown(report, defaults))
    return atomic_write(workdir / 'report.html', html(report, defaults))


def to_json(report: Mapping[str, Any]) -> str:
    """Returns indented JSON, but with each curve on one line."""

    def value(key: str) -> str:
        if key != 'curves':
            return json.dumps(report[key], indent=2, allow_nan=False).replace('\n', '\n  ')
        lines = (f'    {json.dumps(k)}: {json.dumps(v)}' for k, v in report[key].items())
        return '{\n' + ',\n'.join(lines) + '\n  }'

    return '{\n' + ',\n'.join(f'  {json.dumps(key)}: {value(key)}' for key in report) + '\n}\n'


def headline(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the numbers that come first, as pairs (label, value)."""
    entries = []
    splits = report['splits']
    if splits:
        name = 'valid' if 'valid' in splits else next(iter(splits))
        entries = [
            (f'{name} perplexity', number(splits[name]['perplexity'])),
            (f'{name} bits per byte', number(splits[name]['bits_per_byte'])),
        ]
    elif report['tasks']:
        name, values = next(iter(report['tasks'].items()))
        entries = [(f'{name} {key}', number(value)) for key, value in [*values.items()][:2]]
    speed = report['throughput']['tokens_per_second']
    return entries + [
        ('parameters', short(report['parameters'])),
        *_active(report),
        ('steps', number(report['steps'])),
        ('tokens per second', page.NOTHING if speed is None else short(speed)),
        ('time', duration(report['seconds'])),
    ]


def _active(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    active = report.get('active_parameters')  # A report may be older than that.
    return (
        [('active parameters', short(active))] if active not in (None, report['parameters']) else []
    )


def split_rows(splits: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the perplexity table."""
    head = ['split', *(name for _, name, _ in SPLIT_COLUMNS)]
    rows = [
        [split, *(number(values[key], digits) for key, _, digits in SPLIT_COLUMNS)]
        for split, values in splits.items()
    ]
    return head, rows


def expert_rows(splits: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table of experts' loads; no row where there are no experts."""
    rows = [
        [split, *(number(values[f'experts/{key}']) for key, _ in EXPERT_COLUMNS)]
        for split, values in splits.items()
        if 'experts/load' in values
    ]
    return ['split', *(name for _, name in EXPERT_COLUMNS)], rows


def method(config: Mapping[str, Any]) -> str:
    """Returns how the perplexities were computed, in words."""
    used = config['eval']['checkpoint']
    of = '' if used == 'latest' else f' Of the checkpoint `{used}`.'
    if not config['tasks']:
        return _method(config) + of
    said: dict[str, list[str]] = {}
    for name, part in tasks_as_dicts(config).items():
        if not OBJECTIVES[part['objective']['name']].of_texts:
            said.setdefault(_method(part), []).append(name)
    return ' '.join(f'{", ".join(names)}: {words}' for words, names in said.items()) + of


def _method(config: Mapping[str, Any]) -> str:
    length, stride = config['data']['length'], config['eval']['stride']
    name = config['objective']['name']
    objective = OBJECTIVES[name]
    if objective.writes:
        return (
            'Of the targets, given their sources, with every token scored once, that of the end too: '
            'perplexity = exp(total nats / total tokens); bits per byte and word perplexity are of the '
            f'text of the targets. Sides longer than {length} tokens are cut.'
        )
    if not objective.whole:
        return (
            f'Of the tokens that the objective `{name}` asks for, drawn anew for the evaluation, but the '
            f'same in each: exp(total nats / tokens asked for). {objective.measured} It is no perplexity '
            'of the text, and compares with runs of the same objective, tokenizer and length only.'
        )
    windows = (
        f'Windows of {length} tokens slide by {stride}, and each scores only its last {stride}'
        if stride
        else f'Long documents are cut into windows of {length} tokens, side by side'
    )
    return (
        'Over the whole split, with every token scored once, that of the end of a document too: '
        'perplexity = exp(total nats / total tokens); word perplexity = exp(total nats / words between '
        'white space), as in lm-evaluation-harness; bits per byte = total nats / ln 2 / bytes of the '
        f'UTF-8 text. {windows}. Between tokenizers, compare only bits per byte and word perplexity.'
    )


def status(report: Mapping[str, Any]) -> str:
    """Returns one line: how far the run came, on what, and of which commit."""
    where = report['environment']
    total = report['config']['train']['steps']
    done = 'Finished' if report['finished'] else f'Not finished: {report["steps"]} of {total} steps'
    devices = (
        f'{where["devices"]} × {where["device"]}' if 'devices' in where else where.get('device')
    )
    commit = f'commit {where["commit"][:10]}' if where.get('commit') else None
    if commit and where.get('uncommitted_changes'):
        commit += ' with uncommitted changes'
    versions = f'jax {where["jax"]}' if where.get('jax') else None
    return ' · '.join(part for part in (done, devices, versions, commit) if part)


def markdown(report: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Returns report.md."""
    labels, values = zip(*headline(report), strict=True)
    parts = [f'# {page.markdown_text(report["name"])}\n', page.markdown_text(status(report)) + '\n']
    parts += [page.markdown_table(labels, [values])]
    parts += [f'## {title}\n\n{text}' for title, text in sections(report, defaults).items()]
    return '\n'.join(parts)


def sections(report: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Returns the sections of report.md by their titles, those that there are."""
    found = {}
    if report['splits']:
        table = page.markdown_table(*split_rows(report['splits']))
        found['Perplexity'] = f'{table}\n{method(report["config"])}\n'
    if (experts := expert_rows(report['splits']))[1]:
        found['Experts'] = page.markdown_table(*experts)
    if report['tasks']:
        found['Tasks'] = page.markdown_table(*_task_rows(report['tasks']))
    if speed := _throughput(report['throughput']):
        labels, values = zip(*speed, strict=True)
        found['Throughput'] = page.markdown_table(labels, [values])
    found |= run_page.markdown(report)
    if report.get('corpora'):  # A report may be older than that.
        found['Training data'] = page.markdown_table(*corpora_rows(report['corpora']))
    if changed := differences(defaults, report['config']):
        rows = [[f'`{key}`', text(new), text(old)] for key, (old, new) in changed.items()]
        found['Config'] = page.markdown_table(['key', 'this run', 'base'], rows)
    else:
        found['Config'] = 'As `configs/base.py`.\n'
    if report['samples']:
        parts = []
        for task, samples in _by_task(report['samples']).items():
            parts += [f'### {page.markdown_text(task)}\n'] * bool(task)
            parts += [page.markdown_block(s['prompt'] + s['text']) for s in samples[:2]]
        found['Samples'] = '\n'.join(parts)
    return found


def corpora_rows(corpora: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table that says how often what was seen."""
    names = [key for key in ('task', 'name') if any(corpus.get(key) for corpus in corpora)]
    head = ['corpus' if key == 'name' else key for key in names]
    rows = [
        [
            *(corpus[key] for key in (*names, 'source')),
            *(number(corpus[key]) for key in ('rows', 'tokens', 'rows_seen')),
            f'{100 * corpus["share"]:.1f} %',
            f'{corpus["epochs"]:.2f}',
        ]
        for corpus in corpora
    ]
    return [*head, 'source', 'rows', 'tokens', 'rows seen', 'share', 'epochs'], rows


def _task_rows(tasks: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for task, metrics in tasks.items():
        signature = str(metrics.get('signature') or '')
        for metric, value in metrics.items():
            if metric != 'signature':
                rows.append([task, metric, number(value), signature])
                task = signature = ''  # Said once.
    return ['task', 'metric', 'value', 'signature'], rows


def _throughput(throughput: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs (label, value) of what was measured."""

    def share(value: float) -> str:
        return f'{100 * value:.1f} %'

    names = {
        'tokens_per_second': ('tokens per second', number),
        'step_seconds_median': ('seconds a step, median', number),
        'mfu': ('model FLOPs utilisation (MFU)', share),
        'mfu_causal': ('MFU, attention counted half', share),
    }
    return [
        (name, form(throughput[key]))
        for key, (name, form) in names.items()
        if throughput.get(key) is not None
    ]


def html(report: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Returns report.html."""
    parts = [page.tiles(headline(report))]
    if not report['finished']:
        parts.insert(0, f'<p class="warning">{_UNFINISHED}</p>')
    if report['splits']:
        note = f'<p class="note">{page.escape(method(report["config"]))}</p>'
        parts.append(page.section('Perplexity', page.table(*split_rows(report['splits'])) + note))
    if (experts := expert_rows(report['splits']))[1]:
        parts.append(page.section('Experts', page.table(*experts)))
    if report['tasks']:
        parts.append(page.section('Tasks', page.table(*_task_rows(report['tasks']))))
    of_tokens = loss_of_tokens(report['config'])
    parts.append(page.section('Curves', _charts(report['curves'], of_tokens)))
    if report['samples']:
        parts.append(page.section('Samples', _samples(report['samples'])))
    if speed := _throughput(report['throughput']):
        parts.append(page.section('Throughput', page.tiles(speed)))
    parts += [page.section(*each) for each in run_page.html(report).items()]
    if report['corpora']:
        note = f'<p class="note">{_CORPORA_NOTE}</p>'
        table = page.table(*corpora_rows(report['corpora']))
        parts.append(page.section('Training data', table + note))
    parts.append(page.section('Config', _config(report['config'], defaults)))
    where = [[key.replace('_', ' '), text(value)] for key, value in report['environment'].items()]
    parts.append(page.section('Environment', page.table(['', ''], where, wide=1)))
    parts.append(page.section('History', _history(report['history'])))
    return page.page(report['name'], status(report), '\n'.join(parts))


def _charts(found: Mapping[str, Sequence[Sequence[float]]], of_tokens: bool) -> str:
    """Returns the figures; `of_tokens` says that the loss is nats a token."""
    figures, extra, used = [], [], set()
    for title, names, label in (*CHARTS, *_task_charts(found), *_corpora_charts(found)):
        present = [name for name in names if found.get(name)]
        used |= set(present)
        if present:
            perplexity = of_tokens and title == 'Loss'
            label += ' (nats per token)' * perplexity
            curves = {n: found[n] for n in present}
            figures.append(_figure(title, curves, label, len(figures), perplexity))
    for name in found:
        if name not in used and found[name]:
            count = len(figures) + len(extra)
            extra.append(_figure(name, {name: found[name]}, name, count))
    body = f'<div class="charts">{"".join(figures)}</div>'
    if extra:
        body += f'<details><summary>{len(extra)} more</summary><div class="charts">'
        body += f'{"".join(extra)}</div></details>'
    note = 'Pale: as logged. Strong: smoothed over 4 % of the points.'
    if of_tokens:
        note += ' The loss of the first 2 % of the steps may lie above the top.'
    return f'{body}<p class="note">{note}</p>'


def _task_charts(found: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], str]]:
    """Returns the charts of a run of several tasks, as `CHARTS`."""
    tasks = [name.split('/')[1] for name in found if re.fullmatch(r'train/\w+/rate', name)]
    charts = [('Sampling rates', tuple(f'train/{task}/rate' for task in tasks), 'rate')]
    for task in tasks:
        for kind in ('loss', 'accuracy', 'pearson'):
            names = tuple(f'{split}/{task}/{kind}' for split in ('train', 'valid'))
            charts.append((f'{task}: {kind}', names, kind))
    return charts


def _corpora_charts(found: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], str]]:
    """Returns the charts of rates of corpora that change, one a task, as `CHARTS`."""
    by_task: dict[str, list[str]] = {}
    for name in found:
        if name.startswith('corpora/'):
            by_task.setdefault(name.rpartition('/')[0], []).append(name)
    return [
        (' '.join(['Rates of corpora', *folder.split('/')[1:]]), tuple(names), 'share of the rows')
        for folder, names in by_task.items()
    ]


def _figure(
    title: str, found: Mapping[str, Sequence], label: str, count: int, perplexity: bool = False
) -> str:
    series = []
    for color, (name, points) in enumerate(found.items()):
        # What tells them apart: train or valid, or the task, or the corpus.
        part = 1 if title == 'Sampling rates' else -1 if name.startswith('corpora/') else 0
        short_name = name.split('/')[part] if len(found) > 1 else name
        if name in _NOISY:
            series.append(Series(name, thin(points, _HTML_POINTS), color=color, faint=True))
            series.append(Series(short_name, smooth(points, most=_HTML_POINTS), color=color))
        else:
            style = 'points' if len(points) < 40 else 'line'
            series.append(Series(short_name, thin(points, _HTML_POINTS), style, color))
    svg = chart(
        series,
        x_label='steps',
        y_label=label,
        prefix=f'figure{count}',
        perplexity=perplexity,
        zero=all(y is None or y >= 0 for points in found.values() for _, y in points),
    )
    return page.figure(title, series, svg)


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    body = '<p class="note">The prompt is bold and coloured.</p>'
    for task, some in _by_task(samples).items():
        body += f'<h3>{page.escape(task)}</h3>' * bool(task) + ''.join(
            f'<pre><b>{page.escape(s["prompt"])}</b>{page.escape(s["text"])}</pre>' for s in some
        )
    return body


def _by_task(samples: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    found: dict[str, list[Mapping[str, str]]] = {}
    for sample in samples:
        found.setdefault(sample.get('task', ''), []).append(sample)
    return found


def _config(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    changed = differences(defaults, config)
    body = '<p class="note">All is as in configs/base.py.</p>'
    if changed:
        rows = [[key, text(new), text(old)] for key, (old, new) in changed.items()]
        marked = range(len(rows))
        body = page.table(
            ['differs from configs/base.py', 'this run', 'base'], rows, marked, wide=1
        )
    rest = [[key, text(value)] for key, value in flatten(config) if key not in changed]
    return (
        f'{body}<details><summary>{len(rest)} keys as in configs/base.py</summary>'
        f'{page.table(["key", "value"], rest, wide=1)}</details>'
    )


def _history(history: Sequence[Mapping[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for entry in history for key in entry))

    def cell(key: str, value: Any) -> str:
        if key == 'time' and isinstance(value, int | float):
            return time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(value))
        return number(value)

    rows = [[cell(key, entry.get(key)) for key in keys] for entry in history]
    return page.table(keys, rows) if rows else '<p class="note">Nothing was recorded.</p>'
