"""The Hopper kernels, compiled by NVIDIA's assembler for a chip that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.attention import compile_gpu


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize('mask', ['causal', 'sparse_transformer_fixed()'])
def test_compiles_for_a_hopper_gpu_without_spilling(mask, tmp_path):
    if reason := compile_gpu.missing():
        pytest.skip(reason)
    output = tmp_path / 'found.jsonl'
    command = [sys.executable, '-m', 'experiments.attention.compile_gpu', f'--output={output}']
    command += ['--widths', '64', '--masks', mask]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, timeout=300, cwd=root, env=os.environ)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    kernels = {'forward', 'query gradient', 'key gradients'}
    assert {line['kernel'] for line in found} == kernels
    assert all(line['shared_memory'] <= 227 * 1024 for line in found)
    assert not [line for line in found if line['spill_stores'] or line['spill_loads']]
