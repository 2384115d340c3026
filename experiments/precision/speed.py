"""How fast are the precisions of products on this machine's accelerator?

    python -m experiments.precision.speed

Trains GPT-2's shape for 60 steps in bfloat16 and with each precision of products, and prints tokens a
second and the share of the data sheet's bfloat16 peak (MFU), as JSON lines. Not run on a GPU or TPU yet.
"""

import argparse
import json
from pathlib import Path

import lm
from lm.layers.products import PRODUCTS


def main() -> None:
    """Prints a line for each."""
    parser = argparse.ArgumentParser(prog='python -m experiments.precision.speed')
    parser.add_argument('--workdir', type=Path, default=Path('runs/precision_speed'))
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--layers', type=int, default=12)
    parser.add_argument('--width', type=int, default=768, help='a multiple of 64')
    parser.add_argument('--length', type=int, default=1024, help='tokens in a row')
    parser.add_argument('--rows', type=int, default=16, help='of a batch')
    options = parser.parse_args()
    for matmul in ('same', *PRODUCTS):
        config = lm.get_config(
            'base',
            data={'length': options.length, 'batch_size': options.rows, 'valid': '', 'test': ''},
            model={
                'num_layers': options.layers,
                'embed_dim': options.width,
                'num_heads': options.width // 64,
                'dtype': 'bfloat16',
                'matmul': matmul,
            },
            schedule={'warmup_steps': 10},
            train={'steps': options.steps},
            checkpoint={'every': 0},
            generate={'samples': 1, 'max_tokens': 1},
        )
        report = lm.train(config, options.workdir / matmul)
        if not report['finished']:
            raise SystemExit('stopped; the same command goes on.')
        print(json.dumps({'matmul': matmul} | report['throughput'] | report['environment']))


if __name__ == '__main__':
    main()
