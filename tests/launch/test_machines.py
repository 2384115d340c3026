"""The table of machines, against what the vendors say of some, and relations over all."""

import math

import pytest

from lm.errors import InputError
from lm.launch.machines import MACHINES, machine

# Chips, hosts and topology, read off https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}.
KNOWN = {
    'v4-8': (4, 1, '2x2x1'),
    'v4-32': (16, 4, '2x2x4'),
    'v4-512': (256, 64, '4x8x8'),
    'v5e-1': (1, 1, '1x1'),
    'v5e-8': (8, 1, '2x4'),
    'v5e-16': (16, 4, '4x4'),
    'v5e-256': (256, 64, '16x16'),
    'v5p-8': (4, 1, '2x2x1'),
    'v5p-128': (64, 16, '4x4x4'),
    'v5p-12288': (6144, 1536, '16x16x24'),
    'v6e-4': (4, 1, '2x2'),
    'v6e-8': (8, 1, '2x4'),
    'v6e-256': (256, 64, '16x16'),
    'tpu7x-8': (4, 1, '2x2x1'),
    'tpu7x-128': (64, 16, '4x4x4'),
    'h100-8': (8, 1, ''),
    'h200-8': (8, 1, ''),
}


@pytest.mark.parametrize('name', KNOWN)
def test_known_machines(name):
    found = MACHINES[name]
    assert (found.chips, found.hosts, found.topology) == KNOWN[name]


@pytest.mark.parametrize('name', MACHINES)
def test_all_machines(name):
    found = MACHINES[name]
    size = int(name.rpartition('-')[2])
    assert found.name == name == f'{found.chip}-{size}'
    assert machine(name) == machine(name.upper()) == found
    assert found.chips_per_host * found.hosts == found.chips
    assert found.chips_per_host in (1, 2, 4, 8)
    if not found.is_tpu:
        assert size == found.chips
        assert found.hosts == 1
        return
    assert math.prod(map(int, found.topology.split('x'))) == found.chips
    assert size == found.chips * (1 if found.chip in ('v5e', 'v6e') else 2)
    # A slice of more than one host has hosts of four chips.
    assert found.hosts == 1 or found.chips_per_host == 4
    assert found.gke_machine.endswith(f'-{found.chips_per_host}t')
    # All of TPU7x is GKE's alone.
    assert bool(found.tpu_type) == bool(found.runtime) == (found.chip != 'tpu7x')


def test_what_services_call_them():
    v5e = machine('v5litepod-16')
    assert v5e == machine('v5e-16')
    assert (v5e.tpu_type, v5e.runtime) == ('v5litepod-16', 'v2-alpha-tpuv5-lite')
    assert (v5e.gke_accelerator, v5e.gke_machine) == ('tpu-v5-lite-podslice', 'ct5lp-hightpu-4t')
    assert machine('h200-8').gke_machine == 'a3-ultragpu-8g'
    assert machine('h100-8').skypilot == 'H100:8'


@pytest.mark.parametrize(
    ('name', 'right'),
    [
        ('v5e-17', 'v5e-16.'),
        ('v6-16', "'v6e-16'?"),
        ('v5e', 'v5e-1, v5e-4'),
        ('v4-x', 'v4-8, v4-16'),
        ('h100-16', 'h100-8, with --nodes=2.'),
        ('h100-6', 'h100-8.'),
        ('a100', "'h100-"),
        ('cpu', 'h100, h200, tpu7x'),
        ('', 'v5e-16'),
    ],
)
def test_unknown_machines_name_the_nearest(name, right):
    with pytest.raises(InputError) as raised:
        machine(name)
    assert right in str(raised.value)
    assert '\n' not in str(raised.value)
