"""The machines that jobs ask for: their chips, hosts and topologies, and what each service calls them.

Sizes and hosts of TPUs: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x; labels and
machine types of GKE: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, and Google's
own table in xpk (https://github.com/AI-Hypercomputer/xpk, src/xpk/core/system_characteristics.py);
runtimes: https://cloud.google.com/tpu/docs/runtimes; GPUs of Google Cloud:
https://cloud.google.com/compute/docs/gpus.
"""

import math
from typing import NamedTuple

from lm.errors import InputError, nearest


class Machine(NamedTuple):
    """What one request is for: a slice of TPUs, which may be several hosts, or a node with GPUs.

    Attributes:
        name: what `--accelerator` says, such as 'v5e-16'.
        chip: such as 'v5e'.
        chips: of all hosts.
        hosts: virtual machines of a slice; 1 of GPUs, of which a job may have several nodes.
        topology: how the chips lie, such as '4x4'; '' of GPUs.
        gke_accelerator: the label of the nodes; '' where GKE has no such machine.
        gke_machine: the machine type of the node pool, or ''.
        tpu_type: what the Cloud TPU API calls it, such as 'v5litepod-16'; '' where it is not offered there.
        runtime: the software of a TPU VM, or ''.
        skypilot: what SkyPilot calls it, or ''.
    """

    name: str
    chip: str
    chips: int
    hosts: int
    topology: str
    gke_accelerator: str
    gke_machine: str
    tpu_type: str
    runtime: str
    skypilot: str

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def is_tpu(self) -> bool:
        return bool(self.topology)


class _Family(NamedTuple):
    """TPUs of a generation: `NAME-N`, where N counts TensorCores (`cores` a chip)."""

    cores: int
    api: str
    runtime: str
    gke_accelerator: str
    gke_machine: str
    topologies: str


# v4, v5p and TPU7x are counted in TensorCores, two a chip; v5e and v6e have one. The Cloud TPU API is
# not supported on TPU7x (https://docs.cloud.google.com/tpu/docs/runtimes).
_TPUS = {
    'v4': _Family(
        2,
        'v4',
        'tpu-ubuntu2204-base',
        'tpu-v4-podslice',
        'ct4p-hightpu-{}t',
        '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16',
    ),
    'v5e': _Family(
        1,
        'v5litepod',
        'v2-alpha-tpuv5-lite',
        'tpu-v5-lite-podslice',
        'ct5lp-hightpu-{}t',
        '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16',
    ),
    'v5p': _Family(
        2,
        'v5p',
        'v2-alpha-tpuv5',
        'tpu-v5p-slice',
        'ct5p-hightpu-{}t',
        '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24',
    ),
    'v6e': _Family(
        1,
        'v6e',
        'v2-alpha-tpuv6e',
        'tpu-v6e-slice',
        'ct6e-standard-{}t',
        '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16',
    ),
    'tpu7x': _Family(
        2,
        '',
        '',
        'tpu7x',
        'tpu7x-standard-{}t',
        '1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16',
    ),
}

# GPUs of a node, and GKE's label and machine type, where Google Cloud has nodes of so many.
_GPUS = {
    ('h100', 1): ('nvidia-h100-80gb', 'a3-highgpu-1g'),
    ('h100', 2): ('nvidia-h100-80gb', 'a3-highgpu-2g'),
    ('h100', 4): ('nvidia-h100-80gb', 'a3-highgpu-4g'),
    ('h100', 8): ('nvidia-h100-80gb', 'a3-highgpu-8g'),
    ('h200', 1): ('', ''),
    ('h200', 2): ('', ''),
    ('h200', 4): ('', ''),
    ('h200', 8): ('nvidia-h200-141gb', 'a3-ultragpu-8g'),
}


def _tpu(chip: str, family: _Family, topology: str) -> Machine:
    chips = math.prod(map(int, topology.split('x')))
    # Up to 8 chips of v5e and v6e are one host; larger slices are hosts of 4, as are all of the others.
    alone = chips if topology.count('x') == 1 and chips <= 8 else min(chips, 4)
    size = chips * family.cores
    return Machine(
        name=f'{chip}-{size}',
        chip=chip,
        chips=chips,
        hosts=chips // alone,
        topology=topology,
        gke_accelerator=family.gke_accelerator,
        gke_machine=family.gke_machine.format(alone),
        tpu_type=family.api and f'{family.api}-{size}',
        runtime=family.runtime,
        skypilot=family.api and f'tpu-{family.api}-{size}',
    )


def _gpu(chip: str, chips: int, accelerator: str, machine: str) -> Machine:
    sky = f'{chip.upper()}:{chips}'
    return Machine(f'{chip}-{chips}', chip, chips, 1, '', accelerator, machine, '', '', sky)


MACHINES = {
    machine.name: machine
    for machine in [
        *(_tpu(chip, f, shape) for chip, f in _TPUS.items() for shape in f.topologies.split()),
        *(_gpu(*size, *names) for size, names in _GPUS.items()),
    ]
}

# Other names of the same.
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', '7x': 'tpu7x', 'ironwood': 'tpu7x'}


def machine(name: str) -> Machine:
    """Returns the machine of a name such as 'v5e-16', 'v5litepod-16' or 'h100-8'.

    Raises:
        InputError: there is none; the nearest is named.
    """
    family, _, size = name.lower().rpartition('-')
    family = _ALIASES.get(family, family)
    found = MACHINES.get(f'{family}-{size}')
    if found:
        return found
    sizes = {m.name: int(m.name.rpartition('-')[2]) for m in MACHINES.values() if m.chip == family}
    if sizes and size.isdecimal():
        wanted = max(int(size), 1)
        close = MACHINES[min(sizes, key=lambda each: abs(math.log(sizes[each] / wanted)))]
        many = not close.is_tpu and wanted > close.chips
        nodes = f', with --nodes={math.ceil(wanted / close.chips)}' if many else ''
        raise InputError(
            f"--accelerator = '{name}' is no size that there is. The nearest is {close.name}{nodes}."
        )
    if sizes or name in {m.chip for m in MACHINES.values()}:
        of = [m.name for m in MACHINES.values() if m.chip == (family or name)]
        raise InputError(f"--accelerator = '{name}' names no size. Choose one of: {', '.join(of)}.")
    chips = sorted({m.chip for m in MACHINES.values()})
    close = nearest(name, MACHINES) if nearest(name, MACHINES).startswith(' Did') else ''
    hint = close or f' Choose a size of {", ".join(chips)}, such as v5e-16 or h100-8.'
    raise InputError(f"--accelerator = '{name}' is not known.{hint}")
