"""What does each precision do to the loss of the same small model, on the same batches?

    python -m experiments.precision

Trains 2 layers, 64 wide, on the characters of Shakespeare for 1,000 steps in each precision, writes a
line of `results.jsonl` for each run, draws the figure, and prints the README's table. What is there already
is not repeated, and a run that was broken off goes on. $LM_DATA_DIR holds `tinyshakespeare/input.txt`.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import lm
from experiments.record import record
from lm.plots import PALETTE

HERE = Path(__file__).parent
BFLOAT16 = {'dtype': 'bfloat16'}
FLOAT16 = {'dtype': 'float16'}

# Name -> what differs from the first.
CASES: dict[str, dict[str, Any]] = {
    'float32': {},
    'bfloat16': {'model': BFLOAT16},
    'float16': {'model': FLOAT16},
    'int8': {'model': {'matmul': 'int8'}},
    'fp8': {'model': {'matmul': 'fp8'}},
    # So large a scale that the first steps overflow, and one that is doubled so soon that later ones do.
    'float16, overflows': {
        'model': FLOAT16,
        'optimizer': {'loss_scale': 2.0**40, 'loss_scale_steps': 50},
    },
    'bfloat16, int8': {'model': BFLOAT16 | {'matmul': 'int8'}},
    'bfloat16, fp8': {'model': BFLOAT16 | {'matmul': 'fp8'}},
    'float32, seed 1': {'seed': 1},  # How far two runs are apart anyway.
}


def main() -> None:
    """Trains what is missing, draws, and prints the table."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.precision',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--steps', type=int, default=1000, help='of each run (default: 1000)')
    parser.add_argument('--workdir', type=Path, default=Path('runs/precision'))
    parser.add_argument('--output', type=Path, default=HERE / 'results.jsonl')
    options = parser.parse_args()
    for name in CASES:
        if name not in read(options.output):
            found = train(name, options.steps, options.workdir)
            with options.output.open('a') as file:
                file.write(json.dumps(found) + '\n')
    found = read(options.output)
    draw(found, options.output.with_suffix('.png'))
    print(table(found))


def read(output: Path) -> dict[str, dict[str, Any]]:
    """Returns the records of the runs that are there, by case."""
    lines = output.read_text().splitlines() if output.exists() else []
    return {line['case']: line for line in map(json.loads, lines)}


def train(name: str, steps: int, workdir: Path) -> dict[str, Any]:
    """Returns the numbers of a run."""
    changes = {
        'model': {},
        'data': {'batch_size': 8},
        'train': {'steps': steps, 'eval_every': steps // 2},
        'eval': {'batch_size': 64},
        'checkpoint': {'every': 0, 'keep_best': 0},
        'generate': {'samples': 1, 'max_tokens': 50},
        'log': {'tensorboard': False},
        **CASES[name],
    }
    small = {'num_layers': 2, 'embed_dim': 64, 'scan_layers': True}  # Quick to compile, too.
    changes['model'] = small | changes['model']
    folder = workdir / name.replace(', ', '-').replace(' ', '-')
    report = lm.train(lm.get_config('shakespeare_char', **changes), folder)
    if not report['finished']:
        raise SystemExit('stopped; the same command goes on.')
    kept = ('train/loss', 'train/loss_scale', 'train/skipped')
    curves = {key: report['curves'][key] for key in kept if key in report['curves']}
    return {'case': name, 'curves': curves} | record(str(folder))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Returns the README's table."""
    lines = [
        '| precision | validation loss, nats | change | training loss | steps skipped | seconds |',
        '|---|--:|--:|--:|--:|--:|',
    ]
    reference = valid(found['float32'])
    for name, run in found.items():
        trained = [loss for _, loss in run['curves']['train/loss'][-10:]]
        lines.append(
            f'| {name} | {valid(run):.4f} | {valid(run) / reference - 1:+.2%} '
            f'| {sum(trained) / len(trained):.3f} | {run["curves"]["train/skipped"][-1][1]:.0f} '
            f'| {run["seconds"]:.0f} |'
        )
    return '\n'.join(lines)


def valid(run: dict[str, Any]) -> float:
    """Returns the loss of the whole validation part after the last step, nats a character."""
    return run['splits']['valid']['loss']


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the losses, how far each is from float32's at the same step, and the loss scales."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    reference = dict(found['float32']['curves']['train/loss'])
    for i, (name, run) in enumerate(found.items()):
        style = {'color': PALETTE[i % len(PALETTE)][0], 'ls': '-' if i < len(PALETTE) else '--'}
        curve = run['curves']['train/loss']
        left.plot(*zip(*curve, strict=True), lw=0.8, label=name, **style)
        if name in ('float32', 'float32, seed 1'):  # The other seed has other batches.
            continue
        apart = [(step, 100 * (loss / reference[step] - 1)) for step, loss in curve]
        middle.plot(*zip(*apart, strict=True), lw=0.8, **style)
        if scales := run['curves'].get('train/loss_scale'):
            right.plot([s for s, _ in scales], [math.log2(x) for _, x in scales], **style)
    left.set(title='training loss, nats a character', xlabel='step', ylim=(1.2, 3.2))
    left.legend(fontsize=7, frameon=False)
    middle.set(title="change from float32's, same batch, %", xlabel='step')
    right.set(title='log2 of the loss scale of float16', xlabel='step')
    for axes in (left, middle, right):
        axes.spines[['top', 'right']].set_visible(False)
        axes.title.set_fontsize(9)
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    main()
