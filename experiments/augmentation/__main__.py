"""What does each augmentation do to the loss of a small text?

    python -m experiments.augmentation

Trains a small model of 6,000 words of the Brown corpus with each augmentation and without, three seeds
each, and writes a line of `results.jsonl` for each run, the figure, and the table of the README. What is
there already is not repeated, and a run that was broken off goes on. $LM_DATA_DIR holds `brown/brown.txt`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import lm
from experiments.augmentation import figure, readme
from experiments.augmentation.cases import CASES, SEEDS, Case, make_config
from experiments.record import record

HERE = Path(__file__).parent


def main() -> None:
    """Trains what is missing, and draws and writes what is there."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.augmentation',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--steps', type=int, default=240, help='of each run (default: 240)')
    parser.add_argument('--workdir', type=Path, default=Path('runs/augmentation'))
    parser.add_argument('--output', type=Path, default=HERE / 'results.jsonl')
    parser.add_argument(
        '--readme', type=Path, default=HERE / 'README.md', help='whose table is replaced'
    )
    options = parser.parse_args()
    for case in CASES:
        for seed in SEEDS:
            if (case.name, seed) not in done(options.output, options.steps):
                found = train(case, seed, options.steps, options.workdir)
                with options.output.open('a') as file:
                    file.write(json.dumps(found) + '\n')
    found = list(done(options.output, options.steps).values())
    figure.draw(found, options.output.with_suffix('.png'))
    readme.write(found, options.readme)


def done(output: Path, steps: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns the records of the runs of so many steps that are there, by case and seed."""
    lines = output.read_text().splitlines() if output.exists() else []
    found = map(json.loads, lines)
    return {(line['case'], line['seed']): line for line in found if line['steps'] == steps}


def train(case: Case, seed: int, steps: int, workdir: Path) -> dict[str, Any]:
    """Returns the numbers of a run."""
    folder = workdir / f'{case.name.replace(" ", "-")}-{steps}-{seed}'
    embedding = workdir / f'embedding-{steps}.npy'
    report = lm.train(make_config(case, seed, steps, str(embedding)), folder)
    if not report['finished']:
        raise SystemExit('stopped; the same command goes on.')
    if case == CASES[0] and not embedding.exists():
        np.save(embedding, np.asarray(lm.load(folder).params['embed']['embedding']))
    curves = report['curves']
    return {
        'case': case.name,
        'seed': seed,
        'train_loss': curves['train/loss'][-1][1],
        'valid_losses': curves['valid/loss'],
    } | record(str(folder))


if __name__ == '__main__':
    main()
