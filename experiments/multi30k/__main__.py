"""What a trained run translates, as tables and a figure.

    python -m lm.main --config=configs/multi30k_en_de.py
    python -m lm.main --workdir=runs/multi30k_en_de --mode=evaluate --checkpoint=average:5
    python -m experiments.multi30k --workdir=runs/multi30k_en_de

Writes `results.jsonl` (the report's numbers and those of each evaluation), `curve.png` and `samples.md`,
into this folder. The samples show what the model wrote; its sources and references stay in the data set.
"""

import argparse
import json
from pathlib import Path

from experiments.record import record

HERE = Path(__file__).parent
SAMPLES = 20


def main() -> None:
    """Reads the run and writes what is kept of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', type=Path, default=Path('runs/multi30k_en_de'))
    parser.add_argument('--output', type=Path, default=HERE)
    options = parser.parse_args()
    found = record(str(options.workdir))
    evaluations = options.workdir / 'evaluations.jsonl'
    later = evaluations.read_text().splitlines() if evaluations.exists() else []
    lines = [json.dumps(found), *later]
    (options.output / 'results.jsonl').write_text(''.join(f'{line}\n' for line in lines))
    report = json.loads((options.workdir / 'report.json').read_text())
    figure(report['curves'], options.output / 'curve.png')
    path = options.workdir / 'predictions' / 'test.beam4.jsonl'
    (options.output / 'samples.md').write_text(samples(path.read_text().strip().split('\n')))
    print(f'Written: results.jsonl, curve.png, samples.md in {options.output}')


def samples(lines: list[str]) -> str:
    """Returns a table of what was written for evenly spread lines of the test set."""
    step = len(lines) // SAMPLES
    rows = ['| line of `test_2016_flickr` | written by the model, beam 4 |', '|---|---|']
    for number in range(0, step * SAMPLES, step):
        made = json.loads(lines[number])
        same = made['prediction'] == made['target']
        rows.append(
            f'| {number + 1} | {"(the reference, word for word)" if same else made["prediction"]} |'
        )
    return '\n'.join(rows) + '\n'


def figure(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Draws the loss of training and of validation over the steps."""
    from matplotlib.figure import Figure

    drawing = Figure((6.4, 3.6), layout='constrained')
    axes = drawing.subplots()
    for name, label, style in (
        (
            'train/loss',
            'training, with dropout',
            {'color': '#4269d0', 'alpha': 0.5, 'linewidth': 1},
        ),
        ('valid/loss', 'validation', {'color': '#d1495b', 'marker': 'o', 'markersize': 4}),
    ):
        steps, losses = zip(*curves[name], strict=True)
        axes.plot(steps, losses, label=label, **style)
    axes.set_ylim(0, 6)
    axes.set_xlim(0, None)
    axes.set_xlabel('steps')
    axes.set_ylabel('nats a token')
    axes.grid(alpha=0.3)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    drawing.savefig(path, dpi=144)


if __name__ == '__main__':
    main()
