"""Time from a fresh process to the first training step, and of what comes before it.

Each sample is a process of its own, and of the user's settings only the CPU is kept. A first step is from
the start of `python` to the end of the step, imports included (the clock `process`); a contestant draws
initial weights in its own way and takes one step whose loss it reads. What a step alone takes to compile
has the clock `work`, without imports and tracing.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from experiments.speed import gpt
from experiments.speed.gpt import Shape
from experiments.speed.race import Case, Contestant

ROWS = 8


# --- in the sample's process: each returns the loss, or seconds by clock ------------------------


def first_step_lm(layers: int, scan: bool, compile_only: bool, cache: str) -> dict[str, float]:
    """This project's; `compile_only` ends when the step is compiled, the initialisation left out."""
    from pathlib import Path

    from lm import memory

    memory.share_one_arena()
    import jax

    from experiments.speed.peers import lm_gpt
    from lm import backend, mesh, optimizers
    from lm.step import Steps

    shape = Shape(layers=layers)
    fields = lm_gpt.batch(shape, ROWS)
    backend.keep_compiled(Path(cache))
    c = lm_gpt.config(shape, ROWS, 'float32', scan)
    device_mesh = mesh.make(c.mesh)
    schedule = optimizers.schedule(c.schedule, c.optimizer.learning_rate, c.train.steps)
    with jax.set_mesh(device_mesh):
        steps = Steps(c, shape.vocab, device_mesh, optimizers.build(c.optimizer, schedule))
        batch = mesh.put(fields, device_mesh)
        if compile_only:
            lowered = steps.step.lower(steps.shapes, batch, None)
            start = time.perf_counter()
            lowered.compile()
            return {'work': time.perf_counter() - start}
        _, metrics = steps.train(steps.init(), batch)
        loss = float(metrics['nats'])
    return {'loss': loss}


def first_step_flax(layers: int, cache: str) -> dict[str, float]:
    """The newcomer's, who jits `init` as well as the step."""
    import jax
    import jax.numpy as jnp

    from experiments.speed.peers import flax_gpt

    shape = Shape(layers=layers)
    inputs, targets = gpt.batch(shape, ROWS)
    if cache:
        jax.config.update('jax_compilation_cache_dir', cache)
    model = flax_gpt.GPT(shape, jnp.float32)
    optimizer = flax_gpt.adamw()
    params = jax.jit(model.init)(jax.random.key(0), inputs[:1])['params']
    opt_state = jax.jit(optimizer.init)(params)
    train = flax_gpt.train_step(model, optimizer)
    *_, value = train(params, opt_state, inputs, targets)
    return {'loss': float(value)}


def first_step_torch(layers: int, compiled: bool, cache: str) -> dict[str, float]:
    """PyTorch's own initial weights; Inductor's programs are kept in `cache`."""
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = cache
    import torch

    from experiments.speed.peers import torch_gpt

    shape = Shape(layers=layers)
    inputs, targets = (torch.from_numpy(x).long() for x in gpt.batch(shape, ROWS))
    model = torch_gpt.GPT(shape)
    loss = torch.compile(model) if compiled else model
    optimizer = torch_gpt.adamw(model)
    value = loss(inputs, targets)
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), gpt.CLIP)
    optimizer.step()
    return {'loss': value.item()}


FIRST_STEPS = {'lm': first_step_lm, 'flax': first_step_flax, 'torch': first_step_torch}


# --- in the worker ------------------------------------------------------------------------------


def first_step(
    program: str, clock: str, cached: bool, **options: Any
) -> tuple[dict[str, Any], Callable[[], float]]:
    """A fresh process up to its first step; a sample is seconds.

    Args:
        program: of `FIRST_STEPS`.
        clock: `process` or `work`.
        cached: programs compiled by an earlier process are there; else each sample has an empty folder.
        options: of the program.
    """
    kept = tempfile.TemporaryDirectory()

    def take(cache: str) -> dict[str, float]:
        request = json.dumps({'program': program, 'cache': cache, **options})
        start = time.perf_counter()
        found = json.loads(_run('-m', 'experiments.speed.startup', request).splitlines()[-1])
        # A process ends some time after its step: what it took by its own clock is what counts.
        found['process'] = found.pop('ended') - start
        return found

    def sample() -> float:
        if cached:
            return take(kept.name)[clock]
        with tempfile.TemporaryDirectory() as empty:
            return take(empty)[clock]

    first = take(kept.name) if cached else {}
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'torch')}
    return {'clock': clock, 'cached': cached, 'first': first, **versions}, sample


def command(arguments: list[str]) -> tuple[dict[str, Any], Callable[[], float]]:
    """`python ARGUMENTS` to its end; a sample is seconds."""
    _run(*arguments)  # What Python compiles of its own is on the disk from here on.

    def sample() -> float:
        start = time.perf_counter()
        _run(*arguments)
        return time.perf_counter() - start

    return {'python': sys.version.split()[0]}, sample


def _run(*arguments: str) -> str:
    own = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_', 'TORCH'))}
    return subprocess.run(
        [sys.executable, *arguments],
        env=own | {'JAX_PLATFORMS': 'cpu'},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


# --- the cases ----------------------------------------------------------------------------------


def _contestant(name: str, **options: Any) -> Contestant:
    return Contestant(name, 'experiments.speed.startup:first_step', options)


def _first_step(name: str, cached: bool) -> Case:
    common = {'layers': 6, 'clock': 'process', 'cached': cached}
    ours = {'program': 'lm', 'compile_only': False, **common}
    return Case(
        f'first step/6 layers {name}',
        's',
        False,
        (
            _contestant('lm', scan=True, **ours),
            _contestant('lm unrolled', scan=False, **ours),
            _contestant('PyTorch', program='torch', compiled=False, **common),
            _contestant('Flax', program='flax', **common),
        ),
    )


def _first_step_compiled() -> Case:
    """By itself: it takes as long as all others together."""
    options = {'layers': 6, 'clock': 'process', 'cached': False, 'program': 'torch'}
    return Case(
        'first step/6 layers cold, PyTorch compiled',
        's',
        False,
        (_contestant('PyTorch compiled', compiled=True, **options),),
    )


def _compilation(name: str, scan: bool) -> Case:
    options = {'layers': 24, 'scan': scan, 'compile_only': True, 'clock': 'work', 'cached': False}
    return Case(
        f'first step/24 layers {name} compile',
        's',
        False,
        (_contestant('lm', program='lm', **options),),
    )


def _command(name: str, *arguments: str) -> Case:
    build = 'experiments.speed.startup:command'
    return Case(
        f'start/{name}', 's', False, (Contestant('lm', build, {'arguments': list(arguments)}),)
    )


CASES = [
    _first_step('cold', False),
    _first_step('from the cache', True),
    _first_step_compiled(),
    _compilation('scanned', True),
    _compilation('unrolled', False),
    _command('import lm', '-c', 'import lm'),
    _command('import lm.training', '-c', 'import lm.training'),
    _command('lm.main --help', '-m', 'lm.main', '--help'),
]


if __name__ == '__main__':
    request = json.loads(sys.argv[1])
    found = FIRST_STEPS[request.pop('program')](**request)
    # On Linux this clock is the machine's, the same in all processes.
    print(json.dumps(found | {'ended': time.perf_counter()}), flush=True)
