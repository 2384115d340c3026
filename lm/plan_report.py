"""A plan for people: lines for the terminal, and plan.json, plan.md and plan.html in a folder."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm import page
from lm.environment import environment
from lm.page import number
from lm.plan import gb
from lm.plots import Series, chart
from lm.writer import atomic_write

# What a kind of bytes is.
KINDS = {
    'parameters': 'parameters, float32',
    'optimizer': "the optimizer's moments",
    'average': 'the moving average of the parameters',
    'batch': 'the batch',
    'padding': 'padding of these to whole tiles',
    'activations': 'kept of the forward pass',
    'gradients': 'of the backward pass',
    'temporaries': 'all else that XLA sets aside',
    'results': 'metrics',
    'program': 'the program itself',
}
_ASSUMED = (
    'A roofline: products at the peak of the data sheet, memory and links at their full rates, all three '
    'at once. A step is not shorter than this; what is reached in practice is a part of it.'
)


def lines(plan: dict[str, Any]) -> str:
    """Returns the plan for the terminal."""
    return '\n'.join(f'{label:24} {value}' for label, value in [*_facts(plan), *_speed(plan)])


def write(output: Path, plan: dict[str, Any], tried: Sequence[dict[str, Any]] = ()) -> None:
    """Writes plan.json, plan.md and plan.html.

    Args:
        output: the folder, made where it is not there.
        plan: of `lm.plan.plan`.
        tried: of `lm.plan_sweep.sweep`.
    """
    output.mkdir(parents=True, exist_ok=True)
    found = {**plan, 'sweep': list(tried), 'environment': environment()}
    atomic_write(output / 'plan.json', json.dumps(found, indent=1) + '\n')
    atomic_write(output / 'plan.md', _markdown(plan, tried))
    atomic_write(output / 'plan.html', _html(plan, tried, output.name))


def _facts(plan: dict[str, Any]) -> list[tuple[str, str]]:
    axes = ', '.join(f'{axis} {size}' for axis, size in plan['mesh'].items() if size > 1)
    rows, length = plan['batch']['rows'], plan['batch']['length']
    return [
        ('topology', f'{plan["topology"]}: {plan["devices"]} x {plan["device"]}'),
        ('mesh', axes or 'one device'),
        ('parameters', f'{plan["parameters"]:,}'),
        (
            'a step',
            f'{plan["tokens"]:,} tokens: {rows:,} rows of {length:,}; remat {plan["remat"]}',
        ),
        ('does it fit', verdict(plan)),
        *[('  what would help', one) for one in plan['advice']],
        *[
            (f'  {kind}', f'{gb(size)}  ({KINDS[kind]})')
            for kind, size in plan['memory'].items()
            if size and kind in KINDS
        ],
    ]


def verdict(plan: dict[str, Any]) -> str:
    """Returns whether it fits, and what it takes of how much."""
    total = plan['memory'].get('total')
    if plan['fits'] is None:
        return f'not known: it takes {gb(total)} a device'
    if plan['fits']:
        note = f'; {plan["why"]}' if plan['why'] else ''
        return f'yes: {gb(total)} of {gb(plan["room"])} a device{note}'
    return f'no: {plan["why"]}'


def _speed(plan: dict[str, Any]) -> list[tuple[str, str]]:
    flops, model = plan['flops'], plan['model_flops']['mfu']
    found = [('FLOPs of a step', f'{flops["program"]:.3e}')]
    if model:
        found[0] = ('FLOPs of a step', f'{flops["program"]:.3e} ({model:.3e} by 6 N and attention)')
    if 'device' not in flops:
        return found
    found += [
        ('  of a device', f'{flops["device"]:.3e}'),
        ('bytes moved', f'{gb(plan["moved"])} a device, {plan["intensity"]:,.0f} FLOPs a byte'),
    ]
    for kind, axes, count, size, sent in _by_kind(plan):
        found.append(
            (kind, f'{count:,} over {axes}, {gb(size)}, of which a device sends {gb(sent)}')
        )
    if not (roofline := plan['roofline']):
        return [*found, ('roofline', 'none: the peak of this device is not in lm/chips.py')]
    seconds = roofline['seconds']
    parts = ', '.join(f'{name} {_time(part)}' for name, part in seconds.items())
    shares = ' and '.join(
        f'{roofline[name]:.1%} ({what})'
        for name, what in (('mfu', 'full attention'), ('mfu_causal', 'half of it'))
        if roofline[name]
    )
    found += [
        ('roofline', f'{_time(roofline["step"])} a step, bound by {roofline["bound"]}: {parts}'),
        ('MFU at the roofline', shares or page.NOTHING),
        ('tokens a day', f'{roofline["tokens_per_day"]:.3e}'),
        (f'{roofline["steps"]:,} steps', f'{roofline["chip_hours"]:,.1f} chip-hours'),
    ]
    if roofline['cost'] is not None:
        found.append(('cost', f'${roofline["cost"]:,.2f} at ${roofline["price"]:g} a chip-hour'))
    if plan['cache']:
        found.append(('cache of generation', _cache(plan)))
    return found


def _cache(plan: dict[str, Any]) -> str:
    cache = plan['cache']
    return (
        f'{gb(cache["row"])} for a row of {cache["length"]:,} tokens, {gb(cache["token"])} a token'
    )


def _time(seconds: float) -> str:
    return f'{seconds:.3g} s' if seconds >= 1 else f'{1e3 * seconds:.3g} ms'


def _by_kind(plan: dict[str, Any]) -> list[tuple[str, str, int, int, float]]:
    """Returns kind, axes, count, bytes and bytes sent of collectives, by kind and axes."""
    found: dict[tuple[str, str], list] = {}
    for one in plan['collectives']:
        key = one['kind'], ' and '.join(one['axes']) or f'{one["devices"]} devices'
        total = found.setdefault(key, [0, 0, 0.0])
        for place, name in enumerate(('count', 'bytes', 'sent')):
            total[place] += one[name]
    return [(*key, *total) for key, total in found.items()]


def sweep_table(tried: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of a sweep."""
    head = ['mesh', 'remat', 'rows', 'memory', 'step', 'MFU', 'tokens a day', 'fits']
    rows = []
    for one in tried:
        roofline = one.get('roofline')
        axes = ' '.join(f'{axis}={size}' for axis, size in one['mesh'].items() if size != 1)
        rows.append(
            [
                axes or 'one device',
                one['remat'],
                f'{one["rows"]:,}',
                gb(one.get('memory')),
                _time(roofline['step']) if roofline else page.NOTHING,
                f'{roofline["mfu"]:.1%}' if roofline and roofline['mfu'] else page.NOTHING,
                f'{roofline["tokens_per_day"]:.2e}' if roofline else page.NOTHING,
                f'no: {one["why"]}' if one['fits'] is False else 'yes',
            ]
        )
    return head, rows


_BUFFERS = ['array', 'how many', 'bytes', 'kind', 'line', 'operation']
_COLLECTIVES = ['kind', 'axes', 'count', 'bytes', 'sent', 'line']


def _buffers(plan: dict[str, Any]) -> list[list[str]]:
    return [
        [
            one['shape'],
            f'{one["count"]}',
            gb(one['bytes']),
            one['kind'],
            one['source'],
            _operation(one['op_name']),
        ]
        for one in plan.get('buffers', [])
    ]


def _collectives(plan: dict[str, Any]) -> list[list[str]]:
    return [
        [
            one['kind'],
            ' '.join(one['axes']) or f'{one["devices"]} devices',
            f'{one["count"]}',
            gb(one['bytes']),
            gb(one['sent']),
            one['source'],
        ]
        for one in plan.get('collectives', [])
    ]


def _operation(op_name: str) -> str:
    """Returns `layers/mlp/up/dot_general` of the whole of what JAX was doing, without its own words."""
    whole = op_name.partition(':')[0].split('/')
    kept = [
        part
        for part in whole
        if not re.search(r'\(|^(while|body|closed_call|checkpoint)$|^$', part)
    ]
    return '/'.join(dict.fromkeys(kept))


def _markdown(plan: dict[str, Any], tried: Sequence[dict[str, Any]]) -> str:
    facts = [(label.strip(), value) for label, value in [*_facts(plan), *_speed(plan)]]
    parts = ['# Plan\n', page.markdown_table(['', ''], facts), _ASSUMED + '\n']
    if plan.get('buffers'):
        parts += ['## The largest arrays\n', page.markdown_table(_BUFFERS, _buffers(plan))]
    if plan.get('collectives'):
        parts += ['## Collectives\n', page.markdown_table(_COLLECTIVES, _collectives(plan))]
    if tried:
        parts += ['## What was tried\n', page.markdown_table(*sweep_table(tried))]
    return '\n'.join(parts)


def _html(plan: dict[str, Any], tried: Sequence[dict[str, Any]], name: str) -> str:
    roofline, memory = plan['roofline'], plan['memory']
    entries = [('fits', verdict(plan).partition(':')[0]), ('a device', gb(memory.get('total')))]
    if roofline:
        entries += [
            ('a step, at least', _time(roofline['step'])),
            ('MFU, at most', f'{roofline["mfu"]:.0%}' if roofline['mfu'] else page.NOTHING),
            ('tokens a day', number(roofline['tokens_per_day'], 3)),
            ('chip-hours', number(roofline['chip_hours'], 3)),
        ]
    whole = max([plan['room'] or 0, memory.get('total', 0), 1])
    kinds = [
        (kind, size / whole, [gb(size), KINDS[kind]])
        for kind, size in memory.items()
        if size and kind in KINDS
    ]
    note = f'<p class="note">{page.escape(verdict(plan))}.</p>'
    body = page.tiles(entries)
    body += page.section('Memory', note + page.bars(['kind', 'of a device', 'bytes', ''], kinds))
    if roofline:
        body += page.section('Time', _time_section(plan))
    facts = [[label.strip(), value] for label, value in [*_facts(plan), *_speed(plan)]]
    body += page.section('Facts', page.table(['', ''], facts, wide=1))
    if plan.get('buffers'):
        about = '<p class="note">What is in memory when that needs most, but for what is given.</p>'
        body += page.section('Largest arrays', about + page.table(_BUFFERS, _buffers(plan)))
    if plan.get('collectives'):
        body += page.section('Collectives', page.table(_COLLECTIVES, _collectives(plan)))
    if tried:
        body += page.section('Sweep', page.table(*sweep_table(tried), marked=(0,)))
    return page.page(f'Plan: {name}', f'{plan["devices"]} x {plan["device"]}', body)


def _time_section(plan: dict[str, Any]) -> str:
    roofline = plan['roofline']
    seconds = roofline['seconds']
    parts = [(name, part / max(seconds.values()), [_time(part)]) for name, part in seconds.items()]
    peak, bandwidth = roofline['peak'], roofline['bandwidth']
    ridge, here = peak / bandwidth, plan['intensity']
    low, high = min(ridge, here) / 8, max(ridge, here) * 8
    roof = [(x, min(peak, x * bandwidth) / 1e12) for x in (low, ridge, high)]
    reached = plan['flops']['device'] / roofline['step'] / 1e12
    series = [
        Series('roof', roof),
        Series('this step', [(here, reached)], 'points', 1),
    ]
    svg = chart(
        series,
        x_label='FLOPs a byte of memory',
        y_label='TFLOP/s of a device',
        prefix='roofline',
        logarithmic='xy',
    )
    note = f'<p class="note">{page.escape(_ASSUMED)} Numbers: {page.escape(roofline["source"])}</p>'
    return (
        note
        + page.bars(['what', 'of a step', 'seconds'], parts)
        + f'<div class="charts">{page.figure("Roofline", series, svg)}</div>'
    )
