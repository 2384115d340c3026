"""What a plan says of memory against what a step on CPU devices takes.

    python -m experiments.plan.memory --config=configs/quickstart.py --devices=8 data.batch_size=64

Both are of all devices together, which share this machine's memory. What is taken is how much more of the
process is in memory (its high-water mark) while a step runs than before its state was made. Each piece of
64 kB or more that is given back leaves the process at once (MALLOC_MMAP_THRESHOLD_), so that none of what
compiling took is counted as free. Prints a line of JSON.
"""

import argparse
import ast
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ALLOCATION = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_ARENA_MAX': '2', 'JAX_PLATFORMS': 'cpu'}


def measured(config: str, devices: int, changes: dict) -> dict[str, float]:
    """Returns `planned` and `taken`, in bytes, of a new process."""
    command = [sys.executable, '-m', 'experiments.plan.memory', '--inside']
    command += [f'--config={config}', f'--devices={devices}']
    command += [f'{key}={value!r}' for key, value in changes.items()]
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | ALLOCATION
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _inside(config: str, devices: int, changes: dict) -> dict[str, float]:
    import jax
    import numpy as np

    from lm import config as configs
    from lm import mesh, plan, plan_inputs

    changed = configs.load(config)
    configs.put(changed, changes)
    on = plan.target(f'cpu:{devices}')
    parsed = configs.parse(changed)
    run = plan.build(parsed, on)
    planned = plan.plan(parsed, on)['memory']
    shapes = plan_inputs.batch(run)
    with jax.set_mesh(run.mesh):
        init = run.steps.init.lower().compile()
        step = run.steps.step.lower(run.steps.shapes, shapes, None).compile()
        gc.collect()
        before = _status('VmRSS')
        state = init()
        batch = mesh.put({k: np.ones(v.shape, v.dtype) for k, v in shapes.items()}, run.mesh)
        jax.block_until_ready((state, batch))
        held = _status('VmRSS') - before
        Path('/proc/self/clear_refs').write_text('5')  # The high-water mark begins anew.
        state, metrics = step(state, batch, None)
        jax.block_until_ready((state, metrics))
    return {
        'config': config,
        'devices': devices,
        'mesh': dict(run.mesh.shape),
        'changes': changes,
        'planned': devices * planned['total'],
        'planned_held': devices * (planned['parameters'] + planned['optimizer'] + planned['batch']),
        'taken': _status('VmHWM') - before,
        'held': held,
    }


def _status(name: str) -> int:
    """Bytes, of Linux' /proc."""
    return 1024 * int(re.search(rf'{name}:\s+(\d+)', Path('/proc/self/status').read_text())[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--config', default='configs/quickstart.py')
    parser.add_argument('--devices', type=int, default=8)
    parser.add_argument('--inside', action='store_true', help='in this process')
    parser.add_argument('changes', nargs='*', help='KEY=VALUE of the config')
    flags = parser.parse_args()
    pairs = (change.split('=', 1) for change in flags.changes)
    changes = {key: ast.literal_eval(value) for key, value in pairs}
    measure = _inside if flags.inside else measured
    print(json.dumps(measure(flags.config, flags.devices, changes)))


if __name__ == '__main__':
    main()
