"""The table of the README, from the results."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.augmentation.figure import Measured, rows

_BEGIN, _END = '<!-- results -->', '<!-- end of results -->'
_HEAD = (
    '| augmentation | bits a byte at the end | change | at the lowest | change | perplexity at the end '
    '| training loss |\n|---|--:|--:|--:|--:|--:|--:|'
)


def write(records: list[dict[str, Any]], path: Path) -> None:
    """Puts the table in the place of the one between the marks."""
    text = path.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f'{before}{_BEGIN}\n{table(records)}\n{_END}{after}')


def table(records: list[dict[str, Any]]) -> str:
    """Returns what came out, and where the runs were made."""
    lines = ['![Change of bits a byte](results.png)\n', _HEAD]
    for row in rows(records):
        own = [r for r in records if r['case'] == row.name]
        nats = np.mean([r['splits']['valid']['loss'] for r in own])
        numbers = [*_told(row.end), *_told(row.lowest), f'{math.exp(nats):.1f}', f'{row.train:.2f}']
        lines.append(f'| `{row.name}` | {" | ".join(numbers)} |')
    return '\n'.join([*lines, '', _where(records)])


def _told(measured: Measured) -> list[str]:
    change = f'{measured.changes.mean():+.3f} ± {measured.interval:.3f}'
    strong = '**' * (measured.verdict != 'neither')
    there = measured.changes.any()
    return [f'{measured.values.mean():.3f}', f'{strong}{change}{strong}' if there else '']


def _where(records: list[dict[str, Any]]) -> str:
    """Returns a sentence of how much was done, on what, with which commit."""
    places = {
        (e['cores'], e['cpu'] if e['backend'] == 'cpu' else e['device'], e['jax'], e['commit'][:7])
        for e in (found['environment'] for found in records)
    }
    told = '; '.join(
        f'{cores} cores, {device}, jax {version}, commit {commit}'
        for cores, device, version, commit in sorted(places)
    )
    seconds = sum(found['seconds'] for found in records)
    sizes = {found['parameters'] for found in records}
    steps, runs = records[0]['steps'], len(records)
    return (
        f'{runs} runs of {steps} steps and {max(sizes):,} parameters, {seconds / 60:.0f} minutes in all. '
        f'{told}. All numbers: `results.jsonl`.'
    )
