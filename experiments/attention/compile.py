"""Compiles attention, forward and backward, for TPUs that are not there, and says what became of it.

    python -m pip install -e '.[plan]'
    python -m experiments.attention.compile --output=experiments/attention/compile.jsonl

Positions are split over two devices and heads over two. Nothing is run: bytes, collectives and whether a
kernel fits are the compiler's own, and times cannot be had this way.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

# libtpu would ask the metadata server of a cloud machine which TPU it is on.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault(
    'ALLOW_MULTIPLE_LIBTPU_LOAD', '1'
)  # No TPU is held, so others may do as much.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from lm import mesh  # noqa: E402
from lm.attention import IMPLEMENTATIONS, attend, parse  # noqa: E402
from lm.attention.choose import Case  # noqa: E402
from lm.environment import environment  # noqa: E402
from lm.mesh import ROWS  # noqa: E402

TOPOLOGIES = 'v5e:2x2', 'v5p:2x2x1'
MASKS = {
    'gpt3, first layer': 'causal',
    'gpt3, second layer': 'causal & window(256)',
    'local': 'local',
    'longformer': 'longformer',
    'bigbird': 'bigbird',
    'sparse_transformer_strided': 'sparse_transformer_strided',
    'sparse_transformer_fixed': 'sparse_transformer_fixed',
}

_COLLECTIVE = (
    r'= \(?(\w+)\[([\d,]*)\].* (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\('
)
_CONSTANT = r'stablehlo\.constant dense<(?:"|\[).*: tensor<((?:\d+x)*)(\w+)>'
# Of the backend's own notes on a kernel: what it takes of the memory beside the matrix unit.
_KERNEL = r'%(splash_\w+?)[.\d]* = .*?"used_scoped_memory_configs":\[([^\]]*)\]'
_VMEM = r'"memory_space":"1","offset":"\d+","size":"(\d+)"'


def compile_case(topology: str, name: str, form: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what the compiler says of the gradients of one attention, on one of four devices.

    Args:
        topology: of four devices, such as `v5e:2x2`.
        name: of `MASKS`.
        form: of `IMPLEMENTATIONS`.
        shape: `[B, T, H, K]`.

    Raises:
        Exception: of the compiler, where something does not fit or cannot be expressed.
    """
    mask = parse(MASKS[name], 'mask')
    mesh = mesh_of(topology)
    rows = NamedSharding(mesh, P(ROWS, 'sequence'))
    heads = NamedSharding(mesh, P(ROWS, 'sequence', 'tensor'))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=heads)] * 4
    segments = jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=rows)

    def gradients(query, key, value, gradient, segments):
        out, pull = jax.vjp(
            lambda *x: attend(*x, mask, segments=(segments, segments), implementation=form),
            query,
            key,
            value,
        )
        return out, *pull(gradient)

    with jax.set_mesh(mesh):
        start = time.perf_counter()
        traced = jax.jit(gradients, out_shardings=heads).trace(*arrays, segments)
        lowered = traced.lower(lowering_platforms=('tpu',))
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    _, length, _, width = shape
    case = Case(mask, length, length, width, jnp.bfloat16, 'tpu', segments=True)
    return {
        'topology': topology,
        'mask': str(mask),
        'name': name,
        'form': form,
        'shape': list(shape),
        'pairs': IMPLEMENTATIONS[form].pairs(case) / length**2,
        'argument_bytes': memory.argument_size_in_bytes,
        'temporary_bytes': memory.temp_size_in_bytes,
        'peak_bytes': memory.peak_memory_in_bytes,
        'constant_bytes': _constant_bytes(lowered.as_text()),
        'vmem_bytes': _kernels(text),
        'collectives': _collectives(text),
        'xla_flops': compiled.cost_analysis()['flops'],  # Kernels are not among them.
        'compile_seconds': round(seconds, 1),
    }


def mesh_of(topology: str) -> Mesh:
    """Returns four devices, two of which split heads, two positions."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    return mesh.make(mesh.sizes(data=1, fsdp=1, tensor=2, sequence=2), list(devices))


def _kernels(text: str) -> dict[str, int]:
    """Returns the most bytes of VMEM that a kernel of each name takes."""
    found = {}
    for name, notes in re.findall(_KERNEL, text, flags=re.S):
        found[name] = max([found.get(name, 0), *map(int, re.findall(_VMEM, notes))])
    return found


def _collectives(text: str) -> dict[str, dict[str, int]]:
    """Returns how many collectives there are, and of how many bytes their results are."""
    count, size = Counter(), Counter()
    for dtype, dimensions, kind in re.findall(_COLLECTIVE, text):
        count[kind] += 1
        size[kind] += _bytes(dtype, dimensions.replace(',', 'x'))
    return {kind: {'count': count[kind], 'bytes': size[kind]} for kind in sorted(count)}


def _constant_bytes(text: str) -> int:
    """Returns the bytes of constants, those of one repeated number left out."""
    return sum(_bytes(dtype, shape.rstrip('x')) for shape, dtype in re.findall(_CONSTANT, text))


def _bytes(dtype: str, shape: str) -> int:
    bits = int(re.sub(r'\D', '', dtype) or 8)
    return int(np.prod([int(n) for n in shape.split('x') if n])) * max(bits, 8) // 8


def main() -> None:
    """Compiles all cases."""
    options = _parser().parse_args()
    if not importlib.util.find_spec('libtpu'):
        sys.exit("error: this needs TPU's compiler: python -m pip install -e '.[plan]'")
    shape = (options.rows, options.length, options.heads, options.width)
    failed, versions = 0, {k: v for k, v in environment().items() if k in ('commit', 'jax')}
    versions['libtpu'] = importlib.metadata.version('libtpu')
    with options.output.open('w') as file:
        for topology in options.topology:
            for name in options.name:
                for form in options.form:
                    case = {'topology': topology, 'name': name, 'form': form, **versions}
                    try:
                        case |= compile_case(topology, name, form, shape)
                    except Exception as error:  # noqa: BLE001
                        case['error'] = f'{type(error).__name__}: {error}'[:500]
                        failed += 1
                    print(json.dumps(case), file=file, flush=True)
                    print(_row(case), flush=True)
    sys.exit(1 if failed else 0)


def _row(case: dict[str, Any]) -> str:
    title = f'| {case["topology"]} | {case["name"]} | {case["form"]} |'
    if 'error' in case:
        return f'{title} {case["error"]} |'
    moved = ', '.join(
        f'{found["count"]} {kind} {found["bytes"] / 1e6:.0f} MB'
        for kind, found in case['collectives'].items()
    )
    vmem = max(case['vmem_bytes'].values(), default=0)
    return (
        f'{title} {case["pairs"]:.1%} | {case["temporary_bytes"] / 1e6:.0f} MB | {vmem / 1e6:.1f} MB '
        f'| {case["constant_bytes"] / 1e3:.0f} kB | {moved} | {case["compile_seconds"]} s |'
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--topology', nargs='+', default=list(TOPOLOGIES))
    parser.add_argument('--name', nargs='+', choices=MASKS, default=list(MASKS))
    parser.add_argument('--form', nargs='+', choices=IMPLEMENTATIONS, default=['splash'])
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--length', type=int, default=8192)
    parser.add_argument('--heads', type=int, default=16)
    parser.add_argument('--width', type=int, default=128)
    return parser


if __name__ == '__main__':
    main()
