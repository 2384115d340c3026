"""A run of the benchmark held against an earlier one, and pictures of one."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read(path: Path) -> tuple[Record, list[Record]]:
    """Returns the machine (the first line) and the records of a file that the benchmark wrote."""
    machine, *records = map(json.loads, path.read_text().splitlines())
    return machine, records


def compare(old: list[Record], new: list[Record]) -> list[tuple[str, str, float, float, bool]]:
    """Returns (case, contestant, old ratio, new ratio, has it fallen) of what both runs have.

    Ratios, and not figures: the machine may be another. One has fallen where the quartiles of the two
    runs do not even touch.
    """
    before = {(r['case'], r['contestant']): r for r in old}
    rows = []
    for record in new:
        earlier = before.get((record['case'], record['contestant']))
        if earlier is None or record['ratio_spread'] == [1.0, 1.0]:
            continue
        fallen = record['ratio_spread'][1] < earlier['ratio_spread'][0]
        rows.append(
            (record['case'], record['contestant'], earlier['ratio'], record['ratio'], fallen)
        )
    return rows


def share(record: Record, records: list[Record]) -> float | None:
    """Returns what part of the limit a median is, or None if that was not measured in this run."""
    rates = [r['median'] for r in records if r['case'] == record['limit']]
    return record['median'] * record['flops'] / (rates[0] * 1e9) if rates else None


def figure(records: list[Record], machine: Record, path: Path) -> None:
    """Draws how many times better ours is than each other contestant, with the quartiles over rounds."""
    import matplotlib.figure

    shown = [r for r in records if r['ratio_spread'] != [1.0, 1.0] and 'limit/' not in r['case']]
    cases = list(dict.fromkeys(r['case'] for r in shown))
    height = 0.24 * (len(shown) + 1.6 * len(cases)) + 1.1
    drawing = matplotlib.figure.Figure((8.6, height), layout='constrained')
    axes = drawing.subplots()
    y, ticks = 0.0, []
    for case in cases:
        axes.text(0, y, case, weight='bold', size=9, transform=axes.get_yaxis_transform())
        y += 1
        for record in (r for r in shown if r['case'] == case):
            low, high = record['ratio_spread']
            color = '#0072b2' if record['ratio'] >= 1 else '#d55e00'
            axes.plot([low, high], [y, y], color=color, linewidth=2.5, alpha=0.45)
            axes.plot(record['ratio'], y, 'o', color=color, markersize=5)
            axes.annotate(
                f'{record["ratio"]:.2f}x',
                (max(high, record['ratio']), y),
                xytext=(6, 0),
                textcoords='offset points',
                va='center',
                size=8,
            )
            ticks.append((y, record['contestant']))
            y += 1
        y += 0.6
    axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks], size=8)
    axes.set_ylim(y, -0.8)
    axes.axvline(1, color='#888888', linewidth=1)
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}x')
    axes.grid(axis='x', alpha=0.3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel('times better than the contestant named: median over rounds, and quartiles')
    axes.set_title(
        f'{machine["cpu"]}, {machine["cores"]} cores, commit {(machine["commit"] or "?")[:7]}',
        size=9,
        loc='left',
    )
    drawing.savefig(path, dpi=130)
