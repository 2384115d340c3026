"""Mixtures of experts beside the dense model with as many active parameters, on the same tokens.

    python -m experiments.moe --seeds 0 1 2 --output=experiments/moe/results.jsonl

Trains a small decoder on War and Peace (1,024 subwords, context 128) once for each case: the first 98 % of
the text train, the rest validates. $LM_DATA_DIR holds `warandpeace/input.txt.gz`. A run that is there is
not repeated.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

import lm
from experiments.record import record
from lm.evaluate import evaluate

WIDTH, EXPERTS = 512, 8
# Case -> what differs of `config.model`. All have as many parameters that a token goes through, but for the
# router's.
CASES = {
    'dense': {},
    'top 1 of 8': {'router': 'softmax', 'experts_per_token': 1},
    'top 2 of 8': {'mlp_dim': WIDTH // 2},
}
TEXT = 'data:warandpeace/input.txt.gz'


def main() -> None:
    """Trains what is missing, prints the table, and draws the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--cases', nargs='+', default=list(CASES), choices=list(CASES), metavar='CASE'
    )
    parser.add_argument('--rows', type=int, default=32, help='of 128 tokens, in a batch')
    parser.add_argument('--steps', type=int, default=500)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--workdir', type=Path, default=Path('runs/moe'))
    parser.add_argument('--output', type=Path, default=Path('results.jsonl'))
    options = parser.parse_args()
    records = []
    for seed in options.seeds:
        for case in options.cases:
            records.append(train(case, seed, options.rows, options.steps, options.workdir))
            print(table(records[-1:])[-1], flush=True)
    options.output.write_text(''.join(json.dumps(found) + '\n' for found in records))
    print('\n'.join(table(records)))
    figure(records, options.output.with_suffix('.png'))


def train(case: str, seed: int, rows: int, steps: int, workdir: Path) -> dict:
    """Returns the numbers of a run, and its curves."""
    folder = workdir / f'{case.replace(" ", "-")}-{seed}-{rows}-{steps}'
    if not (folder / 'report.json').exists():
        report = lm.train(make_config(case, seed, rows, steps), folder)
        if not report['finished']:
            raise SystemExit('stopped; the same command goes on.')
    # In one batch: the loads of the whole split.
    config = make_config(case, seed, rows, steps, eval={'batch_size': 256})
    whole = evaluate(folder, config=config)
    report = json.loads((folder / 'report.json').read_text())
    kept = ('train/loss', 'valid/loss', 'train/experts/load', 'train/experts/worst_load')
    curves = {name: report['curves'][name] for name in kept if name in report['curves']}
    active = {'active_parameters': report['active_parameters']}
    loads = {key: value for key, value in whole['splits']['valid'].items() if 'load' in key}
    found = {'case': case, 'seed': seed, 'curves': curves, 'loads_of_the_split': loads}
    return found | active | record(folder)


def make_config(case: str, seed: int, rows: int, steps: int, **sections: dict) -> ConfigDict:
    """Returns the config of a run."""
    model = {'num_layers': 2, 'embed_dim': 128, 'num_heads': 4, 'mlp_dim': WIDTH}
    model |= CASES[case] and {'experts': EXPERTS, **CASES[case]}
    return lm.get_config(
        'base',
        seed=seed,
        data={'train': f'{TEXT}[:98%]', 'valid': f'{TEXT}[98%:]', 'test': ''}
        | {'length': 128, 'batch_size': rows, 'random_crop': True},
        tokenizer={'kind': 'bpe', 'vocab_size': 1024},
        model=model | {'scan_layers': False},
        optimizer={'learning_rate': 3e-3},
        schedule={'warmup_steps': 50},
        train={'steps': steps, 'eval_every': 125},
        checkpoint={'every': 0, 'keep_best': 0},
        generate={'samples': 1, 'max_tokens': 32},
        **sections,
    )


def table(records: list[dict]) -> list[str]:
    """Returns lines of Markdown, one for each case: means over the seeds, and their range."""
    head = ['parameters', 'active', 'validation loss', 'load', 'worst layer', 'tokens/s']
    lines = [f'| | {" | ".join(head)} |', '|---' * (1 + len(head)) + '|']
    for case in dict.fromkeys(found['case'] for found in records):
        runs = [found for found in records if found['case'] == case]
        loads = zip(*(found['loads_of_the_split'].values() for found in runs), strict=True)
        cells = [
            *(f'{runs[0][key]:,}' for key in ('parameters', 'active_parameters')),
            spread([found['splits']['valid']['loss'] for found in runs], '.3f'),
            *([spread(values, '.2f') for values in loads] or ['', '']),
            spread([found['throughput']['tokens_per_second'] for found in runs], ',.0f'),
        ]
        lines.append(f'| {case} | {" | ".join(cells)} |')
    return lines


def spread(values: Sequence[float], form: str) -> str:
    """Returns the mean of several values, and the least and the largest."""
    mean = format(sum(values) / len(values), form)
    if len(values) == 1:
        return mean
    return f'{mean} ({min(values):{form}} to {max(values):{form}})'


def figure(records: list[dict], path: Path) -> None:
    """Draws the losses, and how even the loads are, over the steps."""
    from matplotlib.figure import Figure

    from lm.plots import PALETTE

    drawing = Figure((9.0, 3.4), layout='constrained')
    losses, loads = drawing.subplots(1, 2)
    cases = list(dict.fromkeys(found['case'] for found in records))
    for found in records:
        color = PALETTE[cases.index(found['case'])][0]
        label = found['case'] if found['seed'] == records[0]['seed'] else None
        losses.plot(*zip(*found['curves']['valid/loss'], strict=True), color=color, label=label)
        if curve := found['curves'].get('train/experts/worst_load'):
            loads.plot(*zip(*curve, strict=True), color=color, linewidth=1)
    losses.set_title('validation loss, nats a token', loc='left', fontsize=10)
    loads.set_title('busiest expert / mean, in the worst layer', loc='left', fontsize=10)
    loads.axhline(1, color='#777777', linewidth=1, linestyle=(0, (4, 3)))
    loads.set_ylim(bottom=0.9)
    losses.legend(fontsize=8, frameon=False)
    for axes in (losses, loads):
        axes.set_xlabel('steps', fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[['top', 'right']].set_visible(False)
    drawing.savefig(path, dpi=144)


if __name__ == '__main__':
    main()
