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
    options = parser.parse_args()
    with options.output.open('w') as file:
        for seed in options.seeds:
            for kind in options.kinds:
                found = train(kind, seed, options.steps, options.workdir)
                print(json.dumps(found), file=file, flush=True)
                split = found['splits']['valid']
                print(
                    f'{kind:28} seed {seed}  {split["bits_per_byte"]:.4f} bits a byte, '
                    f'perplexity {split["perplexity"]:.3f}, {found["parameters"]:,} parameters, '
                    f'{found["throughput"]["tokens_per_second"]:,.0f} tokens/s',
                    flush=True,
                )


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
