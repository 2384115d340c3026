"""Ways to share the same steps among tasks: masked tokens and next sentences, entailment, similarity.

    python -m experiments.multitask --output=experiments/multitask/results.jsonl

Trains `configs/multitask.py` once for each way, with everything else alike. $LM_DATA_DIR holds what that
config needs. A run that is there is not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments.record import record

# Way -> `config.multitask.mode` and `rates`.
WAYS = {
    'fixed': ('alternating', 'fixed'),
    'proportional': ('alternating', 'proportional'),
    'temperature 2': ('alternating', 'temperature'),
    'progress': ('alternating', 'progress'),
    'gradient norm': ('alternating', 'gradient_norm'),
    'uncertainty': ('alternating', 'uncertainty'),
    'jointly, fixed': ('joint', 'fixed'),
    'jointly, gradient norm': ('joint', 'gradient_norm'),
    'jointly, uncertainty': ('joint', 'uncertainty'),
}
# Column -> where it stands in a record.
COLUMNS = {
    'masked tokens, loss': ('splits', 'text valid', 'loss'),
    'next sentence, accuracy': ('splits', 'text valid', 'pair/accuracy'),
    'entailment, accuracy': ('tasks', 'rte valid', 'accuracy'),
    'similarity, Pearson': ('tasks', 'stsb valid', 'pearson'),
}
TASKS = ('text', 'rte', 'stsb')
LIGHT, DARK = ('#4269d0', '#efb118', '#3ca951'), '#555555'


def main() -> None:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--ways', nargs='+', default=list(WAYS), choices=list(WAYS), metavar='WAY')
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--workdir', type=Path, default=Path('runs/multitask'))
    parser.add_argument('--output', type=Path, default=Path('results.jsonl'))
    options = parser.parse_args()
    records = []
    for seed in options.seeds:
        for way in options.ways:
            records.append(train(way, seed, options.steps, options.workdir))
    options.output.write_text(''.join(json.dumps(found) + '\n' for found in records))
    print('\n'.join(table(records)))
    figure(records, options.output.with_suffix('.png'))


def train(way: str, seed: int, steps: int, workdir: Path) -> dict:
    """Returns the numbers of a run, and its rates over the steps."""
    mode, rates = WAYS[way]
    folder = workdir / f'{mode}-{rates}-{seed}-{steps}'
    command = [
        *(sys.executable, '-m', 'lm.main', '--config=configs/multitask.py', f'--workdir={folder}'),
        f'--config.multitask.mode={mode}',
        f'--config.multitask.rates={rates}',
        f'--config.train.steps={steps}',
        f'--config.seed={seed}',
    ]
    if not (folder / 'report.json').exists():
        subprocess.run(command, check=True)
    curves = json.loads((folder / 'report.json').read_text())['curves']
    shares = {task: curves[f'train/{task}/rate'] for task in TASKS}
    return {'way': way, 'seed': seed, 'command': command[1:], 'rates': shares} | record(folder)


def table(records: Iterable[dict]) -> list[str]:
    """Returns lines of Markdown: means over the seeds, and their range where there are several."""
    lines = [f'| | {" | ".join(COLUMNS)} |', '|---' * (1 + len(COLUMNS)) + '|']
    ways = dict.fromkeys(found['way'] for found in records)
    for way in ways:
        cells = []
        for section, split, metric in COLUMNS.values():
            values = [r[section][split][metric] for r in records if r['way'] == way]
            cell = f'{statistics.fmean(values):.3f}'
            if len(values) > 1:
                cell += f' ({min(values):.3f} to {max(values):.3f})'
            cells.append(cell)
        lines.append(f'| {way} | {" | ".join(cells)} |')
    return lines


def figure(records: list[dict], path: Path) -> None:
    """Draws the rates of each way over the steps."""
    from matplotlib.figure import Figure

    first = [found for found in records if found['seed'] == records[0]['seed']]
    columns = min(3, len(first))
    rows = -(-len(first) // columns)
    drawing = Figure((8.6, 0.5 + 2.0 * rows), layout='constrained')
    grid = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(first) :]:
        axes.set_visible(False)
    for axes, found in zip(grid.flat, first, strict=False):
        steps = [step for step, _ in found['rates'][TASKS[0]]]
        shares = [[rate for _, rate in found['rates'][task]] for task in TASKS]
        areas = axes.stackplot(steps, shares, colors=LIGHT, alpha=0.85, step='post')
        axes.set_title(found['way'], fontsize=9, color=DARK)
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(0, 1)
        axes.tick_params(labelsize=8, colors=DARK)
        for side in axes.spines.values():
            side.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel('rate', fontsize=8, color=DARK)
    for axes in grid[-1]:
        axes.set_xlabel('steps', fontsize=8, color=DARK)
    names = ('masked tokens, next sentence', 'entailment', 'similarity')
    drawing.legend(areas, names, loc='outside upper center', ncols=3, fontsize=8, frameon=False)
    drawing.savefig(path, dpi=144)


if __name__ == '__main__':
    main()
