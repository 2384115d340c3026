"""Devices by name, most of which need not be there: `v5e:4x4`, `h200:8`, `cpu:8`.

A program can be compiled for them and looked at, and not be run. It takes the compilers of
`python -m pip install -e '.[plan]'`.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from lm.errors import InputError, nearest

# Name -> its dimensions, and what libtpu is told besides. A v4's two cores work as one device.
TPUS = {
    'v4': (3, {'chip_config_name': 'megacore'}),
    'v5e': (2, {}),
    'v5p': (3, {}),
    'v6e': (2, {}),
    'tpu7x': (3, {}),
}
# Name -> what differs in XLA's text of the chip (`h200.txtpb`); the chip is the same, its memory not.
GPUS = {
    'h100': {
        'memory_bandwidth: 4800000000000': 'memory_bandwidth: 3350000000000',
        'device_memory_size: 151397597184': 'device_memory_size: 85029158912',
        'NVIDIA H200 141GB HBM3e': 'NVIDIA H100 80GB HBM3',
    },
    'h200': {},
}
NAMES = (*TPUS, *GPUS, 'cpu')
_CHIP = Path(__file__).with_name('h200.txtpb')
_INSTALL = "python -m pip install -e '.[plan]'"


def devices(name: str) -> list[jax.Device]:
    """Returns the devices of a topology.

    Args:
        name: `NAME:AxB[xC]` of a TPU's chips (`v5e:4x4`, `v5p:2x2x2`), `NAME[:N]` of so many GPUs in one
            node (`h200`, `h200:8`), or `cpu:N`.

    Raises:
        InputError: there is no such chip or shape, or its compiler is not installed.
    """
    kind, _, shape = name.partition(':')
    kind = kind.lower()
    place = f"--topology = '{name}'"
    if kind not in NAMES:
        raise InputError(f"{place}: '{kind}' is not known.{nearest(kind, NAMES)}")
    if kind in TPUS:
        return _tpus(kind, shape, place)
    if not re.fullmatch(r'[1-9]\d*|', shape):
        raise InputError(f"{place}: '{shape}' is no number of devices. Did you mean '{kind}:8'?")
    return _gpus(kind, int(shape or 1)) if kind in GPUS else _cpus(int(shape or 1), place)


def _tpus(kind: str, shape: str, place: str) -> list[jax.Device]:
    if not _installed('libtpu'):
        raise InputError(f"{place} needs TPU's compiler: {_INSTALL}")
    dimensions, options = TPUS[kind]
    right = f'{kind}:{"x".join(["2"] * 2 + ["1"] * (dimensions - 2))}'
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape) or shape.count('x') != dimensions - 1:
        raise InputError(
            f"{place}: its chips have {dimensions} dimensions. Did you mean '{right}'?"
        )
    from jax.experimental import topologies

    sizes = [int(size) for size in shape.split('x')]
    if math.prod(sizes) == 1:
        options = options | {'chips_per_host_bounds': (1, 1, 1)}
    try:
        with _no_machine():
            made = topologies.get_topology_desc(
                platform='tpu', topology_name=f'{kind}:{shape}', **options
            )
    except jax.errors.JaxRuntimeError as error:
        message = ' '.join(str(error).split())
        raise InputError(f"{place}: {message} Did you mean '{right}'?") from None
    return list(made.devices)


@contextlib.contextmanager
def _no_machine() -> Iterator[None]:
    """Keeps libtpu from asking a cloud which TPU this machine is, and from complaining that it is none."""
    told = {
        'TPU_SKIP_MDS_QUERY': '1',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # No TPU is held, so others may do as much.
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_WORKER_ID': '0',
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update({name: value for name, value in told.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _gpus(kind: str, count: int) -> list[jax.Device]:
    for module in ('jax_plugins.xla_cuda12', 'nvidia.cuda_nvcc'):
        if not _installed(module):
            raise InputError(f"--topology = '{kind}' needs NVIDIA's compiler: {_INSTALL}")
    from jax.experimental import topologies

    text = _CHIP.read_text()
    for old, new in GPUS[kind].items():
        text = text.replace(old, new)
    options = {'target_config': text, 'topology': f'1x1x{count}'}  # Slices, hosts, devices of each.
    return list(topologies.get_topology_desc(platform='cuda', **options).devices)


def _cpus(count: int, place: str) -> list[jax.Device]:
    """Devices of this machine, which share its cores and memory."""
    with contextlib.suppress(RuntimeError):  # JAX may have its devices already.
        jax.config.update('jax_num_cpu_devices', count)
    found = jax.devices('cpu')
    if len(found) < count:
        raise InputError(f'{place}: this process has {len(found)} CPU devices.')
    return list(found[:count])


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Not even the package that it would be in.
        return False
