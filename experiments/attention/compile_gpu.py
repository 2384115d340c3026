"""Compiles the Hopper kernels for an H200 on a machine that has none, and prints what they take.

    python -m pip install jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12
    JAX_PLATFORMS=cpu python -m experiments.attention.compile_gpu --output=hopper.jsonl

The versions are those of the installed JAX. The wheels may lie in a folder of their own (`pip install
--no-deps --target=FOLDER`) that PYTHONPATH names. What NVIDIA's assembler says of each kernel is printed as
a table and, with --output, written as JSON lines. Registers are a thread's at launch: the kernels then
move some of the fetching warpgroup's to those that compute.
"""

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.experimental import topologies

from lm import topology
from lm.attention import hopper, parse
from lm.attention.hopper_kernels import Arrays, Problem

CHIP = Path(topology.__file__).with_name('h200.txtpb')
BATCH, LENGTH, HEADS, GROUPS = 2, 2048, 8, 2
MASKS = (
    'causal',
    'full',
    'causal & window(256)',
    'longformer(256, 4)',
    'bigbird()',
    'sparse_transformer_strided()',
    'sparse_transformer_fixed()',
    'causal | prefix',
)


def missing() -> str:
    """Says what is not installed that compiling for CUDA takes; '' where all is there."""
    if not _installed('jax_plugins.xla_cuda12'):
        return 'needs the wheels jax-cuda12-plugin and jax-cuda12-pjrt'
    if not _installed('nvidia.cuda_nvcc'):
        return 'needs the wheel nvidia-cuda-nvcc-cu12'
    return ''


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Not even the package that it would be in.
        return False


def chip() -> jax.Device:
    """Returns an H200 to compile for."""
    options = {'target_config': CHIP.read_text(), 'topology': '1x1x1'}
    return topologies.get_topology_desc(platform='cuda', **options).devices[0]


def kernels(problem: Problem, dtype: Any) -> dict[str, tuple[Callable, Arrays]]:
    """Returns the three kernels by name, each a function and what it takes."""
    sharding = jax.sharding.SingleDeviceSharding(chip())
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    query = array((BATCH, LENGTH, HEADS, problem.width), dtype)
    key = array((BATCH, LENGTH, GROUPS, problem.width), dtype)
    numbers = array((BATCH, HEADS, LENGTH), jnp.float32)
    tokens = (array((BATCH, LENGTH), jnp.int32),) * 2 if problem.tokens else ()
    arrays = Arrays(query, key, key, tokens)
    all_arrays = Arrays(query, key, key, tokens, query, numbers, numbers)
    return {
        'forward': (lambda arrays: hopper.forward(arrays, problem), arrays),
        'query gradient': (lambda arrays: hopper.query_gradient(arrays, problem), all_arrays),
        'key gradients': (lambda arrays: hopper.key_gradients(arrays, problem), all_arrays),
    }


def compile_for_chip(function: Callable, arrays: Arrays) -> dict[str, Any]:
    """Returns registers, spilled bytes and shared memory of the one kernel in a function."""
    start = time.perf_counter()
    with _shared_memory() as shared, _output() as read:
        jax.jit(function).trace(arrays).lower(lowering_platforms=('cuda',)).compile()
        text = read()
    [registers] = re.findall(r'Used (\d+) registers', text)
    [(stores, loads)] = re.findall(
        r'frame, (\d+) bytes spill stores, (\d+) bytes spill loads', text
    )
    return {
        'registers': int(registers),
        'spill_stores': int(stores),
        'spill_loads': int(loads),
        'shared_memory': sum(shared),
        'seconds': round(time.perf_counter() - start, 1),
    }


@contextlib.contextmanager
def _shared_memory() -> Iterator[list[int]]:
    """Collects the bytes of the arrays in shared memory of the kernels that are made meanwhile."""
    sizes, make = [], plgpu.kernel

    def kernel(*args, scratch_types, **kwargs):
        is_array = lambda x: isinstance(x, plgpu.Barrier) or hasattr(x, 'shape')  # noqa: E731
        arrays = jax.tree.leaves(scratch_types, is_leaf=is_array)
        sizes.extend(x.size * x.dtype.itemsize for x in map(_abstract, arrays) if x is not None)
        return make(*args, scratch_types=scratch_types, **kwargs)

    plgpu.kernel = kernel
    try:
        yield sizes
    finally:
        plgpu.kernel = make


def _abstract(x: Any) -> jax.ShapeDtypeStruct | None:
    return None if isinstance(x, plgpu.Barrier) else jax.ShapeDtypeStruct(x.shape, x.dtype)


@contextlib.contextmanager
def _output() -> Iterator[Callable[[], str]]:
    """Yields a function that returns what the process, C++ included, has written meanwhile."""
    sys.stdout.flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with tempfile.TemporaryFile() as file:

        def read() -> str:
            ctypes.CDLL(None).fflush(None)
            file.seek(0)
            return file.read().decode(errors='replace')

        for descriptor in kept:
            os.dup2(file.fileno(), descriptor)
        try:
            yield read
        finally:
            ctypes.CDLL(None).fflush(None)
            for descriptor, old in kept.items():
                os.dup2(old, descriptor)
                os.close(old)


def cases(masks: list[str], widths: list[int]) -> Iterator[tuple[dict[str, Any], Problem]]:
    """Yields each mask and width as it is, and causal attention with what else there is."""

    def problem(mask: str, width: int, softcap=None, segments=False) -> Problem:
        prefix = 'prefix' in mask
        return Problem(parse(mask), softcap, width, LENGTH, LENGTH, segments, prefix)

    for width in widths:
        for mask in masks:
            yield {'mask': mask, 'width': width}, problem(mask, width)
        for name, more in (('softcap', {'softcap': 50.0}), ('segments', {'segments': True})):
            yield {'mask': f'causal, {name}', 'width': width}, problem('causal', width, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--masks', nargs='+', default=MASKS, help='of the mask language')
    parser.add_argument('--widths', nargs='+', type=int, default=hopper.WIDTHS, help='of a head')
    parser.add_argument('--dtype', default='bfloat16', choices=['bfloat16', 'float16'])
    parser.add_argument('--output', help='a file to add JSON lines to')
    flags = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    os.environ['MOSAIC_GPU_DUMP_PTXAS'] = '1'  # Has the assembler's own words printed.
    print('| mask | K | kernel | registers | spilled, bytes | shared memory, KiB | seconds |')
    print('|---|---|---|---|---|---|---|')
    for case, problem in cases(flags.masks, flags.widths):
        for name, (function, arrays) in kernels(problem, flags.dtype).items():
            found = compile_for_chip(function, arrays)
            spilled = f'{found["spill_stores"]} + {found["spill_loads"]}'
            print(
                f'| `{case["mask"]}` | {case["width"]} | {name} | {found["registers"]} | {spilled} '
                f'| {found["shared_memory"] / 1024:.0f} | {found["seconds"]} |',
                flush=True,
            )
            if flags.output:
                line = case | {'kernel': name, 'dtype': flags.dtype, 'jax': jax.__version__} | found
                with Path(flags.output).open('a') as file:
                    file.write(json.dumps(line) + '\n')


if __name__ == '__main__':
    main()
