"""Where the time of a training step goes, by kind of operation.

    python -m experiments.speed.profile --dtype=bfloat16

Operations run side by side on a CPU's cores, so that their times add up to more than the step's.
"""

import argparse
import collections
import re
import statistics
import tempfile
import time
from pathlib import Path

import jax

from experiments.speed.gpt import Shape
from experiments.speed.peers import lm_gpt

STEPS = 5

# The first that matches `what the operation is | where in the program it comes from` names the kind.
KINDS = (
    ('products: attention', r'dot.*\|.*attention/dot_general|\|.*attention/.*(BTNH|BNTS)'),
    ('products: output matrix', r'\|.*(attend|head)/dot_general'),
    ('products: dense layers', r'\|.*dot_general'),
    ('transposes and copies', r'^(copy|transpose)|copy_|slice_bitcast|concatenate'),
    ('attention: softmax and masks', r'\|.*attention/'),
    ('activations', r'\|.*mlp/'),
    ('norms and residual sums', r'\|.*(norm|layers/add|Decoder)'),
    ('loss', r'\|.*jvp\(\)'),
    ('clipping and AdamW', r''),
)


def kind(operation: str, source: str) -> str:
    """Returns the kind of an operation of the compiled program."""
    return next(name for name, pattern in KINDS if re.search(pattern, f'{operation}|{source}'))


def measure(dtype: str, vocab: int, scan: bool) -> tuple[float, dict[str, float]]:
    """Returns seconds a step (median), and the busy seconds of each kind in it."""
    steps, state, fields = lm_gpt.build(Shape(vocab=vocab), 8, dtype, scan)
    text = steps.step.lower(state, fields, None).compile().as_text()
    sources = dict(
        re.findall(r'^\s*(?:ROOT )?%([\w.\-]+) = .*?op_name="([^"]*)"', text, flags=re.M)
    )
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        state, _ = jax.block_until_ready(steps.train(state, fields))
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                start = time.perf_counter()
                state, _ = jax.block_until_ready(steps.train(state, fields))
                seconds.append(time.perf_counter() - start)
        (trace,) = Path(folder).rglob('*.xplane.pb')
        data = jax.profiler.ProfileData.from_file(str(trace))
        busy: collections.Counter[str] = collections.Counter()
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    operation = dict(event.stats).get('hlo_op')
                    if operation and not operation.startswith(('while', 'call')):
                        name = kind(operation, sources.get(operation, ''))
                        busy[name] += event.duration_ns / 1e9 / STEPS
    return statistics.median(seconds), dict(busy.most_common())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--vocab', type=int, default=8192)
    parser.add_argument('--scan', action='store_true', help='layers in a compiled loop')
    options = parser.parse_args()
    step, busy = measure(options.dtype, options.vocab, options.scan)
    print(f'step: {step:.3f} s')
    for name, seconds in busy.items():
        print(f'{name:30} {seconds * 1e3:7.0f} ms {seconds / sum(busy.values()):6.0%}')


if __name__ == '__main__':
    main()
