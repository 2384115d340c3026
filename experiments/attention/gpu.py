"""Attention on a GPU: first whether the numbers are right, then how fast they come.

    python -m experiments.attention.gpu --output=experiments/attention/gpu.jsonl

Numbers: values and gradients in bfloat16 and float16, of every ready-made mask and of segments, prefixes
and capped logits, against the plain form in float32. The plain form in 16 bits has an error of its own; an
implementation fails whose error is more than twice that, and then nothing is timed.

Speed: TFLOP/s over the pairs in blocks of 128 x 128 that hold anything, 4 K FLOPs a pair for the result and
10 K for the gradients (what is computed again does not count), beside cuDNN's dense causal attention in the
same run, which counts the pairs on and below the diagonal. Windows are also timed by cuDNN's own.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import attention
from lm.attention import dense, walk
from lm.attention.block import Extras
from lm.attention.masks import PRESETS, Mask
from lm.errors import InputError

TOKENS = 65_536  # in a call, so that short rows fill the chip as well.
WINDOWS = (256, 1024)
MASKS = (
    'causal',
    *(f'causal & window({width})' for width in WINDOWS),
    'causal & (window(256) | global_tokens(64))',
    'bigbird()',
)
TENSORS = ('out', 'd_query', 'd_key', 'd_value')


# --- numbers --------------------------------------------------------------------------------------


def number_cases() -> Iterator[tuple[str, Mask, dict[str, Any]]]:
    """Yields a name, a mask and options: each ready-made mask, and causal with each option."""
    for name in ('causal', 'full', *PRESETS):
        masks = attention.parse('fixed(128, 8)' if name == 'fixed' else name)
        for mask in masks if isinstance(masks, tuple) else (masks,):
            yield str(mask), mask, {}
    causal = attention.parse('causal')
    yield 'causal, softcap', causal, {'softcap': 20.0}
    yield 'causal, segments', causal, {'segments': True}
    yield 'causal | prefix', attention.parse('causal | prefix'), {'in_prefix': True}
    yield '~causal', attention.parse('~causal'), {}  # The last query sees nothing.


def check(implementation: str, dtype: str, width: int, length: int) -> Iterator[dict[str, Any]]:
    """Yields the errors of each case, relative to the norm of what is right, and whether they pass."""
    batch, heads, groups = 2, 4, 2
    keys = jax.random.split(jax.random.key(width), 4)
    shapes = [(batch, length, n, width) for n in (heads, groups, groups, heads)]
    exact = [
        jax.random.normal(k, s).astype(dtype).astype(jnp.float32)
        for k, s in zip(keys, shapes, strict=True)
    ]
    rough = [x.astype(dtype) for x in exact]
    for name, mask, options in number_cases():
        segments = 1 + jnp.arange(length)[None] // 300 + jnp.zeros((batch, 1), jnp.int32)
        told = {
            'segments': (segments, segments) if 'segments' in options else None,
            'in_prefix': segments == 1 if 'in_prefix' in options else None,
        }
        plain = functools.partial(
            dense.attend, mask=mask, extras=Extras(options.get('softcap')), **told
        )
        ours = functools.partial(
            attention.attend,
            mask=mask,
            softcap=options.get('softcap'),
            implementation=implementation,
            **told,
        )
        with jax.default_matmul_precision('highest'):
            want = value_and_gradients(plain)(*exact)
        errors = relative_errors(value_and_gradients(ours)(*rough), want)
        allowed = relative_errors(value_and_gradients(plain)(*rough), want)
        ok = all(a <= 2 * b for a, b in zip(errors, allowed, strict=True))  # False for NaN.
        yield {
            'kind': 'numbers',
            'mask': name,
            'dtype': dtype,
            'width': width,
            'length': length,
            'errors': dict(zip(TENSORS, errors, strict=True)),
            'errors_of_plain': dict(zip(TENSORS, allowed, strict=True)),
            'ok': ok,
        }


def value_and_gradients(attend: Callable) -> Callable:
    """Returns a compiled function of query, key, value and the gradient of the result."""

    def run(query, key, value, gradient):
        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(gradient)

    return jax.jit(run)


def relative_errors(found: tuple, want: tuple) -> list[float]:
    found = [np.asarray(x, np.float32) for x in found]
    want = [np.asarray(x, np.float32) for x in want]
    norms = (np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, want, strict=True))
    return [float(f'{x:.3g}') for x in norms]


# --- speed ----------------------------------------------------------------------------------------


def speed(implementation: str, length: int, flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields milliseconds and TFLOP/s of each mask, and of cuDNN."""
    batch = max(TOKENS // length, 1)
    keys = jax.random.split(jax.random.key(0), 4)
    counts = flags.heads, flags.groups, flags.groups, flags.heads
    arrays = [
        jax.random.normal(k, (batch, length, n, flags.width), flags.dtype)
        for k, n in zip(keys, counts, strict=True)
    ]
    each_pair = batch * flags.heads * flags.width
    reference = {}
    for name, attend, pairs in contestants(implementation, length):
        runs = {
            'forward': (jax.jit(attend), arrays[:3], 4 * each_pair * pairs),
            'forward and backward': (value_and_gradients(attend), arrays, 14 * each_pair * pairs),
        }
        for what, (run, arguments, flops) in runs.items():
            seconds = median_seconds(run, arguments)
            rate = flops / seconds / 1e12
            reference.setdefault(what, rate)  # cuDNN's dense causal attention comes first.
            yield {
                'kind': 'speed',
                'name': name,
                'what': what,
                'shape': [batch, length, flags.heads, flags.width],
                'groups': flags.groups,
                'dtype': flags.dtype,
                'milliseconds': round(1e3 * seconds, 3),
                'tflops': round(rate, 1),
                'of_cudnn_causal': round(rate / reference[what], 3),
            }


def contestants(implementation: str, length: int) -> Iterator[tuple[str, Callable, int]]:
    """Yields a name, a function of query, key and value, and the pairs that count for one head."""
    cudnn = functools.partial(jax.nn.dot_product_attention, implementation='cudnn', is_causal=True)
    yield 'cudnn causal', cudnn, length * (length + 1) // 2
    for width in WINDOWS:
        mask = attention.parse(f'causal & window({width})')
        window = functools.partial(cudnn, local_window_size=(width - 1, 0))
        yield f'cudnn {mask}', window, walk.pairs(mask, length, length, (128, 128))
    for text in MASKS:
        mask = attention.parse(text)
        run = functools.partial(attention.attend, mask=mask, implementation=implementation)
        yield f'{implementation} {text}', run, walk.pairs(mask, length, length, (128, 128))


def median_seconds(run: Callable, arguments: list, rounds: int = 7) -> float:
    """Returns the median time of a call, over rounds of at least 50 ms."""
    jax.block_until_ready(run(*arguments))
    calls = 1
    while (first := _seconds(run, arguments, calls)) < 0.05:
        calls = max(2 * calls, int(calls * 0.06 / first))
    return statistics.median(_seconds(run, arguments, calls) for _ in range(rounds)) / calls


def _seconds(run: Callable, arguments: list, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        out = run(*arguments)
    jax.block_until_ready(out)
    return time.perf_counter() - start


# --- flags ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--implementation', default='hopper', choices=attention.IMPLEMENTATIONS)
    parser.add_argument('--only', choices=['numbers', 'speed'], help='one half of the run')
    parser.add_argument('--lengths', nargs='+', type=int, default=[4096, 16_384, 65_536])
    parser.add_argument('--heads', type=int, default=16)
    parser.add_argument('--groups', type=int, default=16, help='heads of keys')
    parser.add_argument('--width', type=int, default=128, help='of a head')
    parser.add_argument('--dtype', default='bfloat16', choices=['bfloat16', 'float16'])
    parser.add_argument('--output', help='a file to add JSON lines to')
    flags = parser.parse_args()
    device = jax.devices()[0]
    about = {'device': device.device_kind, 'jax': jax.__version__}
    about |= {'implementation': flags.implementation}

    def record(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        if flags.output:
            with Path(flags.output).open('a') as file:
                file.write(json.dumps(about | line) + '\n')

    try:
        if flags.only != 'speed':
            for dtype, width in (('bfloat16', 128), ('bfloat16', 64), ('float16', 64)):
                for line in check(flags.implementation, dtype, width, length=1000):
                    record(line)
                    if not line['ok']:
                        sys.exit(f'{line["mask"]}: the numbers are wrong, so nothing is timed.')
        if flags.only != 'numbers':
            for length in flags.lengths:
                for line in speed(flags.implementation, length, flags):
                    record(line)
    except InputError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
