"""The TPU kernel compiles, forward and backward, for TPUs that are not there.

    python -m pip install -e '.[aot]'
    python -m pytest -m aot

Nothing is run. Positions are split over two devices of four, and heads over two.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from experiments.attention import compile as experiment

pytestmark = [
    pytest.mark.aot,
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec('libtpu'),
        reason="needs TPU's compiler: python -m pip install -e '.[aot]'",
    ),
]
# Not short: one block a device would hide what does not fit.
LENGTH, HEADS, WIDTH = 2048, 4, 128


@pytest.fixture(scope='module', params=experiment.TOPOLOGIES)
def cases(request, tmp_path_factory):
    """What the compiler says, by the name of the preset. In a process that has no other devices."""
    output = tmp_path_factory.mktemp('aot') / 'compile.jsonl'
    flags = [
        f'--{k}={v}'
        for k, v in {'rows': 2, 'length': LENGTH, 'heads': HEADS, 'width': WIDTH}.items()
    ]
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.attention.compile', f'--output={output}',
         f'--topology={request.param}', *flags],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert output.exists(), done.stderr[-2000:]
    return {case['name']: case for case in map(json.loads, output.read_text().splitlines())}


@pytest.mark.parametrize('name', experiment.MASKS)
def test_every_preset_compiles_split_over_heads_and_positions(cases, name):
    case = cases[name]
    assert 'error' not in case, case['error']
    phases = [kernel.split('_')[2] for kernel in case['vmem_bytes']]
    assert sorted(phases) == ['dkv', 'dq', 'fwd']
    assert max(case['vmem_bytes'].values()) < 16e6
    assert case['constant_bytes'] < 4e6


@pytest.mark.parametrize('name', experiment.MASKS)
def test_only_keys_and_values_go_between_devices(cases, name):
    """Each device gathers the other half of its heads' keys and values, and scatters their gradients."""
    moved = cases[name]['collectives']
    keys = 2 * LENGTH * HEADS // 2 * WIDTH * 2  # bytes, of a device's heads
    segments = 2 * LENGTH * 4
    assert set(moved) == {'all-gather', 'reduce-scatter'}
    assert 2 * keys <= moved['all-gather']['bytes'] <= 4 * keys + 2 * segments
    assert moved['reduce-scatter']['bytes'] <= 2 * keys  # half as many tokens, in float32
