"""The perplexity of each kind of attention after the same training.

    python -m experiments.attention.quality --output=experiments/attention/quality.jsonl

Trains a small decoder on the bytes of War and Peace (context 1,024) once for each kind, with everything
else alike: the first 90 % of the text train, the last 10 % validate. $LM_DATA_DIR holds
`warandpeace/input.txt.gz`. A run that is there is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from experiments.record import record

# Name -> the entries of `config.model.attention`, cycled over the layers.
KINDS = {
    'dense': ('causal',),
    'gpt3: dense, window 256': ('gpt3(256)',),
    'window 256': ('causal & window(256)',),
    'window 64': ('causal & window(64)',),
    'BigBird': tuple(f'causal & bigbird(256, 64, 2, {seed})' for seed in range(4)),
    'strided 64': ('sparse_transformer_strided(64)',),
    'fixed 64': ('sparse_transformer_fixed(64, 8)',),
    'top-k 8 x 64': ('topk(8, 64)',),
    'linear': ('linear',),
    'gated linear': ('gated_linear',),
    'gated delta': ('gated_delta',),
    '3 gated delta, window 256': ('gated_delta',) * 3 + ('causal & window(256)',),
}
# Name -> what its layers are called in `cost.jsonl`.
PARTS = {name: (name,) for name in KINDS} | {
    'dense': ('dense, in blocks',),
    'gpt3: dense, window 256': ('dense, in blocks', 'window 256'),
    '3 gated delta, window 256': ('gated delta',) * 3 + ('window 256',),
}
COST_LENGTH = 8192
_MARKERS = 'os^vDPX*<>ph'
TEXT = 'data:warandpeace/input.txt.gz'


def main() -> None:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--kinds', nargs='+', default=list(KINDS), choices=list(KINDS), metavar='KIND'
    )
    parser.add_argument('--steps', type=int, default=400)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--workdir', type=Path, default=Path('runs/attention'))
    parser.add_argument('--output', type=Path, default=Path('quality.jsonl'))
    parser.add_argument('--cost', type=Path, default=Path(__file__).with_name('cost.jsonl'))
    options = parser.parse_args()
    records = []
    with options.output.open('w') as file:
        for seed in options.seeds:
            for kind in options.kinds:
                found = train(kind, seed, options.steps, options.workdir)
                print(json.dumps(found), file=file, flush=True)
                records.append(found)
                split = found['splits']['valid']
                print(
                    f'{kind:28} seed {seed}  {split["bits_per_byte"]:.4f} bits a byte, '
                    f'perplexity {split["perplexity"]:.3f}, {found["parameters"]:,} parameters, '
                    f'{found["throughput"]["tokens_per_second"]:,.0f} tokens/s',
                    flush=True,
                )
    figure(records, options.cost, options.output.with_suffix('.png'))


def figure(records: list[dict], cost: Path, path: Path) -> None:
    """Draws the bits a byte of each kind over the time of its attention, as `cost.jsonl` has it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    lines = [json.loads(line) for line in cost.read_text().splitlines()]
    times = {
        line['contestant']: line['median']
        for line in lines
        if line.get('case') == f'attention/{COST_LENGTH}'
    }
    drawing = Figure((8.6, 4.2), layout='constrained')
    axes = drawing.subplots()
    for found in records:
        parts = PARTS[found['kind']]
        if not all(part in times for part in parts):
            continue
        x = sum(times[part] for part in parts) / len(parts)
        y = found['splits']['valid']['bits_per_byte']
        marker = _MARKERS[list(KINDS).index(found['kind']) % len(_MARKERS)]
        axes.plot(x, y, marker, markersize=8, alpha=0.8, label=f'{found["kind"]}: {y:.2f}')
    axes.set_xscale('log')
    axes.set_xlim(100, 3000)
    axes.set_xticks([100, 200, 500, 1000, 2000], [100, 200, 500, '1,000', '2,000'])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.1)
    axes.set_xlabel(f'attention, forward and backward of {COST_LENGTH:,} tokens, ms a layer')
    axes.set_ylabel(f'bits a byte after {records[0]["steps"]} steps')
    axes.grid(alpha=0.3)
    drawing.legend(loc='outside right upper', fontsize=8)
    drawing.savefig(path, dpi=144)


def train(kind: str, seed: int, steps: int, workdir: Path) -> dict:
    """Returns the numbers of a run."""
    name = ''.join(c if c.isalnum() else '_' for c in kind)
    folder = workdir / f'{name}-{seed}-{steps}'
    entries = ', '.join(map(repr, KINDS[kind]))
    command = [
        *(sys.executable, '-m', 'lm.main', '--config=configs/gpt3.py', f'--workdir={folder}'),
        f'--config.model.attention=({entries},)',
        f'--config.data.train={TEXT}[:90%]',
        f'--config.data.valid={TEXT}[90%:]',
        '--config.data.test=',
        '--config.data.packing=False',  # Some masks count from the start of the row.
        f'--config.train.steps={steps}',
        f'--config.seed={seed}',
    ]
    if not (folder / 'report.json').exists():
        subprocess.run(command, check=True)
    return {'kind': kind, 'seed': seed, 'command': command[1:]} | record(str(folder))


if __name__ == '__main__':
    main()
