"""Counts what a step does over stages: idle turns, bytes a device holds, bytes it sends.

   python -m experiments.pipeline --output=experiments/pipeline/results.jsonl

Steps are compiled for virtual CPU devices, and not run: bytes are the compiler's own. What is sent in a
loop is counted once, for one turn.
"""

import argparse
import json
import math
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lm  # noqa: E402
from lm import config as configs  # noqa: E402
from lm import mesh, optimizers  # noqa: E402
from lm.environment import environment  # noqa: E402
from lm.models import pipeline  # noqa: E402
from lm.step import Steps  # noqa: E402

VOCAB, ROWS, LENGTH = 256, 32, 64
MODEL = {'num_layers': 8, 'embed_dim': 256, 'num_heads': 4}
# Stages, pieces a stage, micro-batches.
CASES = [(1, 1, 0), (2, 1, 2), (2, 1, 8), (2, 2, 8), (4, 1, 4), (4, 1, 16), (4, 2, 4), (4, 2, 16)]

_SENT = r' = (.*) (collective-permute|all-gather|all-reduce|all-to-all)(?:-start)?\('


def measure(stages: int, repeats: int, micro_batches: int, remat: str) -> dict[str, Any]:
    """Returns what a compiled training step holds and sends on each device."""
    model = MODEL | {
        'pipeline_repeats': repeats,
        'pipeline_microbatches': micro_batches,
        'remat': remat,
    }
    sizes = {'data': 1, 'stage': stages}
    data = {'length': LENGTH, 'batch_size': ROWS}
    config = configs.parse(lm.get_config('base', model=model, data=data, mesh=sizes))
    device_mesh = mesh.make(config.mesh, jax.devices()[:stages])
    pipeline.check(config.model, device_mesh)
    rate = optimizers.schedule(config.schedule, config.optimizer.learning_rate, config.train.steps)
    fields = dict.fromkeys(('inputs', 'targets', 'positions', 'segment_ids'), jnp.int32)
    batch = {
        name: jax.ShapeDtypeStruct((ROWS, LENGTH), dtype)
        for name, dtype in (fields | {'loss_weights': jnp.float32}).items()
    }
    with jax.set_mesh(device_mesh):
        steps = Steps(config, VOCAB, device_mesh, optimizers.build(config.optimizer, rate))
        program = steps.step.lower(steps.shapes, batch, None).compile()
    memory = program.memory_analysis()
    found = {'stages': stages, 'pieces': repeats, 'micro_batches': micro_batches, 'remat': remat}
    if stages > 1:
        plan = pipeline.Schedule(stages, repeats, micro_batches)
        found |= {'turns': plan.iterations, 'bubble': round(plan.bubble, 4)}
    return found | {
        'state_bytes': memory.argument_size_in_bytes,
        'temporary_bytes': memory.temp_size_in_bytes,
        'sent': sent(program.as_text()),
    }


def sent(program: str) -> dict[str, int]:
    """Returns bytes by `COLLECTIVE, forward | backward | update [in a turn]`."""
    found: dict[str, int] = {}
    for line in program.splitlines():
        if match := re.search(_SENT, line):
            name = re.search(r'op_name="([^"]*)"', line)
            path = name[1] if name else ''
            part = 'backward' if 'transpose' in path else 'forward' if 'jvp' in path else 'update'
            turn = ' in a turn' if 'while/body' in path else ''
            shapes = re.findall(r'f32\[([\d,]*)\]', match[1])
            size = 4 * sum(math.prod(map(int, filter(None, s.split(',')))) for s in shapes)
            key = f'{match[2]}, {part}{turn}'
            found[key] = found.get(key, 0) + size
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--output', type=Path, required=True)
    output = parser.parse_args().output
    with output.open('w') as file:
        for case in CASES:
            line = measure(*case, remat='full') | {'environment': environment()}
            print(json.dumps(line), file=file, flush=True)


if __name__ == '__main__':
    main()
