"""What each kind of attention costs in time and memory, over the length of the row.

    python -m pip install -e '.[experiments,bench]'
    python -m experiments.attention.cost --output=experiments/attention/cost.jsonl

Forward and backward, float32, B = 1, H = 4, K = 64, on this machine. Each contestant has a process of its
own and takes a sample in each round, in random order; a ratio is taken within a round.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.speed import race
from experiments.speed.race import Case, Contestant
from lm.environment import environment

HEADS, WIDTH = 4, 64
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
DENSE_MOST = 8192  # The plain form's arrays of all pairs would not fit beyond.
LEAST_SECONDS = 0.2  # of a sample: short calls are repeated

# Name -> (what runs, its target: times as fast as the plain form, by length).
KINDS: dict[str, tuple[str, dict[int, float]]] = {
    'dense, plain': ('xla:causal', {}),
    'dense, in blocks': ('auto:causal', {}),
    'window 256': ('sparse:causal & window(256)', {4096: 15, 8192: 30}),
    'BigBird': ('sparse:causal & bigbird(256, 64, 2)', {4096: 8}),
    'strided 64': ('sparse:sparse_transformer_strided(64)', {8192: 4}),
    'fixed 64': ('sparse:sparse_transformer_fixed(64, 8)', {8192: 4}),
    'top-k 8 x 64': ('topk(8, 64)', {8192: 5}),
    'linear': ('linear', {8192: 10}),
    'gated linear': ('gated_linear', {8192: 10}),
    'gated delta': ('gated_delta', {}),
}


# --- in the worker --------------------------------------------------------------------------------


def build(what: str, length: int) -> tuple[dict[str, Any], Callable[[], float]]:
    """Forward and backward of one kind; a sample is milliseconds."""
    import jax
    import jax.numpy as jnp

    from lm import backend

    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (1, length, HEADS, WIDTH)) for key in keys]
    attend = _attention(what, length)

    def loss(query, key, value, weights):
        return jnp.sum(weights * attend(query, key, value))

    grad = jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=backend.compiler_options())
    start = time.perf_counter()
    compiled = grad.lower(*arrays).compile()
    seconds = time.perf_counter() - start
    run = functools.partial(_timed, lambda: jax.block_until_ready(compiled(*arrays)))
    repeats = max(1, round(LEAST_SECONDS / max(run(), run())))

    def sample() -> float:
        return 1e3 * statistics.fmean(run() for _ in range(repeats))

    facts = {
        'compile_seconds': seconds,
        'temporary_mb': compiled.memory_analysis().temp_size_in_bytes / 1e6,
        'pairs': _pairs(what, length),
        'jax': jax.__version__,
    }
    return facts, sample


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _attention(what: str, length: int) -> Callable[..., Any]:
    """Returns `(query, key, value) -> out` of `IMPLEMENTATION:MASK`, or of a kind."""
    from lm import attention

    implementation, _, expression = what.rpartition(':')
    mask = attention.parse(expression)
    if implementation:
        return functools.partial(attention.attend, mask=mask, implementation=implementation)
    return _other(mask)


def _other(kind: Any) -> Callable[..., Any]:
    """Returns what runs a kind that is no mask. Gates are made of keys and values: they have gradients."""
    import jax
    import jax.numpy as jnp

    from lm.attention import linear, topk

    def gated_linear(query, key, value):
        return linear.gated_linear(query, key, value, -0.1 * jax.nn.softplus(key))[0]

    def gated_delta(query, key, value):
        log_decay = -0.1 * jax.nn.softplus(key[..., 0])
        key /= jnp.linalg.norm(key, axis=-1, keepdims=True)
        return linear.gated_delta(query, key, value, log_decay, jax.nn.sigmoid(value[..., 0]))[0]

    match kind:
        case topk.TopK():
            return functools.partial(topk.attend, spec=kind)
        case linear.GatedLinear():
            return gated_linear
        case linear.GatedDelta():
            return gated_delta
    return lambda *arrays: linear.linear(*arrays, kind)[0]


def _pairs(what: str, length: int) -> dict[str, float] | None:
    """Returns which part of the square a mask allows, and which is computed."""
    from lm import attention
    from lm.attention import choose
    from lm.attention.show import density

    implementation, _, expression = what.rpartition(':')
    if not implementation:
        return None
    mask = attention.parse(expression)
    case = choose.Case(mask, length, length, WIDTH, 'float32', 'cpu')
    chosen = choose.choose(case, implementation)
    computed = attention.IMPLEMENTATIONS[chosen].pairs(case)
    return {'allowed': density(mask, length), 'computed': computed / length**2}


# --- the races ------------------------------------------------------------------------------------


def cases(lengths: list[int], kinds: list[str]) -> list[Case]:
    """Returns a race for each length; the first contestant is the plain form, where it fits."""
    found = []
    for length in lengths:
        entered = [
            Contestant(
                name, 'experiments.attention.cost:build', {'what': KINDS[name][0], 'length': length}
            )
            for name in kinds
            if name != 'dense, plain' or length <= DENSE_MOST
        ]
        found.append(Case(f'attention/{length}', 'ms', False, tuple(entered)))
    return found


def main() -> None:
    """Runs the benchmark."""
    options = _parser().parse_args()
    records = []
    with options.output.open('w') as file:
        print(json.dumps(environment()), file=file, flush=True)
        for case in cases(options.lengths, options.kinds):
            for record in race.run(case, options.rounds, 0, _say(case.name)):
                print(json.dumps(record), file=file, flush=True)
                records.append(record)
            print(table([r for r in records if r['case'] == case.name]), flush=True)
    figure(records, options.output.with_suffix('.png'))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m experiments.attention.cost',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--lengths', nargs='+', type=int, default=LENGTHS, metavar='T')
    parser.add_argument(
        '--kinds', nargs='+', default=list(KINDS), choices=list(KINDS), metavar='KIND'
    )
    parser.add_argument('--rounds', type=int, default=9, help='samples of each (default: 9)')
    parser.add_argument(
        '--output', type=Path, default=Path('cost.jsonl'), help='the figure beside it'
    )
    return parser


def _say(name: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f'\r\033[K{name}: {text}', end='', file=sys.stderr, flush=True)

    return say


def table(records: list[dict[str, Any]]) -> str:
    """Returns one length's race in lines."""
    if sys.stderr.isatty():
        print('\r\033[K', end='', file=sys.stderr, flush=True)
    length = int(records[0]['case'].split('/')[1])
    lines = [
        f'T = {length}: ms, times as fast as {records[0]["contestant"]}, temporary MB, of the square'
    ]
    for record in records:
        # The race gives how many times better the first is.
        ratio, (low, high) = 1 / record['ratio'], (1 / r for r in reversed(record['ratio_spread']))
        facts = record['facts']
        line = (
            f'  {record["contestant"]:18} {record["median"]:10,.1f} {ratio:7.2f}x [{low:.2f} to {high:.2f}]'
            f' {facts["temporary_mb"]:9,.0f}'
        )
        if facts['pairs']:
            pairs = facts['pairs']
            line += f'   {pairs["allowed"]:6.1%} allowed, {pairs["computed"]:6.1%} computed'
        if target := KINDS[record['contestant']][1].get(length):
            line += f'   target {target}x: {"met" if ratio >= target else "missed"}'
        lines.append(line)
    return '\n'.join(lines)


def figure(records: list[dict[str, Any]], path: Path) -> None:
    """Draws time and memory over the length of the row, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    drawing = Figure((10.6, 4.2), layout='constrained')
    panels = drawing.subplots(1, 2)
    names = list(dict.fromkeys(r['contestant'] for r in records))
    for axes, title, value in (
        (panels[0], 'forward and backward, ms', lambda r: r['median']),
        (panels[1], 'temporary memory, MB', lambda r: r['facts']['temporary_mb']),
    ):
        for i, name in enumerate(names):
            points = [
                (int(r['case'].split('/')[1]), value(r)) for r in records if r['contestant'] == name
            ]
            style = '--' if name.startswith('dense') else '-'
            axes.plot(
                *zip(*points, strict=True), f'o{style}', markersize=3.5, label=name, color=f'C{i}'
            )
        axes.set_xscale('log', base=2)
        axes.set_yscale('log')
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{int(x):,}'))
        axes.set_xlabel('tokens in a row')
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc='outside right upper', fontsize=8)
    drawing.savefig(path, dpi=144)


if __name__ == '__main__':
    main()
