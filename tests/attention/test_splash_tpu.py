"""The TPU kernel compiles, forward and backward, for TPUs that are not there.

    python -m pip install -e '.[plan]'
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

# Not short: one block a device would hide what does not fit.
ROWS, LENGTH, HEADS, WIDTH = 2, 2048, 4, 128


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'),
    reason="needs TPU's compiler: python -m pip install -e '.[plan]'",
)
@pytest.mark.parametrize('topology', experiment.TOPOLOGIES)
def test_every_preset_compiles_split_over_heads_and_positions(topology, tmp_path):
    cases = compiled(topology, tmp_path / 'compile.jsonl')
    assert [case['name'] for case in cases] == list(experiment.MASKS)
    for case in cases:
        assert 'error' not in case, case
        phases = [kernel.split('_')[2] for kernel in case['vmem_bytes']]
        assert sorted(phases) == ['dkv', 'dq', 'fwd']
        assert 0 < max(case['vmem_bytes'].values()) < 16e6
        assert case['constant_bytes'] < 2e6
        check_collectives(case['collectives'])


def check_collectives(moved):
    """Each device gathers the other half of its heads' keys and values, and scatters their gradients."""
    keys = ROWS * LENGTH * HEADS // 2 * WIDTH * 2  # bytes, of a device's heads in 16 bits
    segments = ROWS * LENGTH * 4
    assert set(moved) == {'all-gather', 'reduce-scatter'}
    assert 2 * keys <= moved['all-gather']['bytes'] <= 2 * (2 * keys + segments)
    assert moved['reduce-scatter']['bytes'] == 2 * keys  # half of the tokens, in float32


def compiled(topology, output):
    """What the compiler says of each preset. It runs in a process without virtual devices."""
    sizes = {'rows': ROWS, 'length': LENGTH, 'heads': HEADS, 'width': WIDTH}
    flags = [f'--{k}={v}' for k, v in {**sizes, 'output': output, 'topology': topology}.items()]
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.attention.compile', *flags],
        env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert output.exists(), done.stderr[-2000:]
    return [json.loads(line) for line in output.read_text().splitlines()]
