"""Does each objective learn?

    python -m experiments.objectives

Trains a small model once with each objective, with everything else alike, on the Brown corpus (`seq2seq`:
on Multi30k), and writes a line of `results.jsonl` for each, the figure, and the table of the README. What
is there already is not repeated, and a run that was broken off goes on. $LM_DATA_DIR holds
`brown/brown.txt` and `multi30k/`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.objectives import figure, readme
from experiments.objectives.cases import CASES, Case, overrides
from experiments.record import record

HERE = Path(__file__).parent


def main() -> None:
    """Trains what is missing, and draws and writes what is there."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.objectives',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [case.name for case in CASES]
    parser.add_argument('--only', nargs='+', default=names, choices=names, metavar='CASE')
    parser.add_argument('--steps', type=int, default=600, help='of each run (default: 600)')
    parser.add_argument('--workdir', type=Path, default=Path('runs/objectives'))
    parser.add_argument('--output', type=Path, default=HERE / 'results.jsonl')
    parser.add_argument(
        '--readme', type=Path, default=HERE / 'README.md', help='whose table is replaced'
    )
    options = parser.parse_args()
    for case in CASES:
        if case.name in options.only and case.name not in done(options.output, options.steps):
            found = train(case, options.steps, options.workdir)
            with options.output.open('a') as file:
                file.write(json.dumps(found) + '\n')
            print('  '.join(readme.cells(found)), flush=True)
    found = done(options.output, options.steps)
    records = [found[case.name] for case in CASES if case.name in found]
    figure.draw(records, options.output.with_suffix('.png'))
    readme.write(records, options.readme)


def done(output: Path, steps: int) -> dict[str, dict[str, Any]]:
    """Returns the records of the runs of so many steps that are there, by case."""
    lines = output.read_text().splitlines() if output.exists() else []
    found = map(json.loads, lines)
    return {line['case']: line for line in found if line['steps'] == steps}


def train(case: Case, steps: int, workdir: Path) -> dict[str, Any]:
    """Returns the numbers of a run, and what its model predicts before and after."""
    from experiments.objectives.measure import measure

    folder = workdir / f'{case.name.replace(" + ", "-")}-{steps}'
    command = ['-m', 'lm.main', '--config=configs/brown.py', f'--workdir={folder}']
    keys = overrides(case) | {'train.steps': steps, 'schedule.warmup_steps': steps // 10}
    command += [f'--config.{key}={value}' for key, value in keys.items()]
    if not (folder / 'report.json').exists():
        subprocess.run([sys.executable, *command], check=True)
    curves = json.loads((folder / 'report.json').read_text())['curves']
    return {
        'case': case.name,
        'command': command,
        'predictions': measure(folder),
        'curves': {term: _curve(curves, term) for term in case.predicts},
    } | record(str(folder))


def _curve(curves: dict[str, Any], term: str) -> list[list[float]]:
    """Returns the loss of training, of a term of its own name or of the main one."""
    points = curves.get(f'train/{term}/loss', curves['train/loss'])
    return [[step, round(value, 4)] for step, value in points]


if __name__ == '__main__':
    main()
