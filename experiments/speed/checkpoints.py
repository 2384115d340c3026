"""What a checkpoint costs: GPT-2's 124M parameters with Adam's moments in float32, 1.49 GB of random bits.

Three numbers: the stall is how long the call holds the loop's thread; the total is until all is on disk;
the excess is what a loop of steps takes longer for having saved, which counts also the cores, the memory's
bandwidth and the copies that a save takes from the steps. Every step writes the whole state where it lay
(donated buffers, or in place). Nothing is left on the disk: 1.5 GB at a time.
"""

import contextlib
import importlib.metadata
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.race import Case, Contestant

D, L, T, V = 768, 12, 1024, 50257
SHAPES = {  # GPT-2 124M, its layers stacked.
    'embedding': (V, D),
    'position': (T, D),
    'norm/scale': (L, 2, D),
    'norm/bias': (L, 2, D),
    'qkv/kernel': (L, D, 3 * D),
    'qkv/bias': (L, 3 * D),
    'out/kernel': (L, D, D),
    'out/bias': (L, D),
    'up/kernel': (L, D, 4 * D),
    'up/bias': (L, 4 * D),
    'down/kernel': (L, 4 * D, D),
    'down/bias': (L, D),
}
PARTS = ('params', 'mu', 'nu')
WIDTH, PRODUCTS = 2048, 4  # The step's other work: 4 products of 2048 x 2048, 69 GFLOP.
STEPS = 4  # Before a save, to know what a step takes.

Call = Callable[[], None]
# A folder -> a context with the call that begins to save, and the one that waits for the rest.
Opened = Callable[[Path], contextlib.AbstractContextManager[tuple[Call, Call]]]


def measure(what: str, step: Call, opened: Opened) -> float:
    """Returns a sample of `what`: stall (ms), total or excess (s)."""
    with (
        tempfile.TemporaryDirectory(prefix='checkpoint') as folder,
        opened(Path(folder)) as (save, wait),
    ):
        alone = statistics.median(timed(step) for _ in range(STEPS))
        stall = timed(save)
        if what == 'stall':
            return stall * 1e3
        if what == 'total':
            return stall + timed(wait)
        writing, taken = threading.Thread(target=wait), []
        writing.start()
        while writing.is_alive() or not taken:
            taken.append(timed(step))
    return stall + sum(taken) - len(taken) * alone


def timed(function: Call) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def check(state: dict, opened: Opened, restore: Callable[[Path], Any]) -> dict[str, Any]:
    """Saves, reads back and compares bit for bit. Returns facts.

    Raises:
        ValueError: what is restored is not what was saved.
    """
    with tempfile.TemporaryDirectory(prefix='checkpoint') as name:
        folder = Path(name)
        expected = {path: np.array(leaf, copy=True) for path, leaf in flat(state).items()}
        with opened(folder) as (save, wait):
            save()
            wait()
        found = flat(restore(folder))
        for path, leaf in expected.items():
            if not np.array_equal(np.asarray(found[path]).view('uint32'), leaf.view('uint32')):
                raise ValueError(f'{path} is not what was saved')
        files = [path.stat().st_size for path in folder.rglob('*') if path.is_file()]
    return {
        'bytes': sum(leaf.nbytes for leaf in expected.values()),
        'bytes_on_disk': sum(files),
        'files': len(files),
        'restored_is_saved': True,
    }


def flat(state: dict) -> dict[str, Any]:
    return {f'{part}/{name}': state[part][name] for part in PARTS for name in SHAPES}


# ------------------------------------------------------------------------------------------- JAX


def jax_loop() -> tuple[Callable[[], dict], Call, Any]:
    """Returns the state as it is now, a step that donates it, and its shapes."""
    import jax

    def random(key: Any) -> dict:
        keys = iter(jax.random.split(key, len(PARTS) * len(SHAPES)))
        return {
            part: {name: jax.random.normal(next(keys), shape) for name, shape in SHAPES.items()}
            for part in PARTS
        }

    def update(state: dict, x: Any) -> tuple[dict, Any]:
        for _ in range(PRODUCTS):
            x = x @ x / WIDTH**0.5
        return jax.tree.map(lambda leaf: leaf * 0.9999, state), x

    update = jax.jit(update, donate_argnums=0)
    x = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))
    now = [jax.jit(random)(jax.random.key(1))]

    def step() -> None:
        now[0], y = update(now[0], x)
        jax.block_until_ready((now[0], y))

    step()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), now[0]
    )
    return lambda: now[0], step, shapes


def ours(what: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """`lm.checkpoint.Checkpoints`, as the training loop uses it."""
    from lm.checkpoint import Checkpoints
    from lm.config import CheckpointConfig

    state, step, shapes = jax_loop()
    config = CheckpointConfig(every=1, keep=1, keep_best=0)

    @contextlib.contextmanager
    def opened(folder: Path) -> Iterator[tuple[Call, Call]]:
        with Checkpoints(folder, config) as checkpoints:
            checkpoints.prepare(shapes)
            yield lambda: checkpoints.save(1, state(), {'next_index': 1}, None), checkpoints.wait

    def restore(folder: Path) -> dict:
        with Checkpoints(folder, config, read_only=True) as checkpoints:
            return checkpoints.restore(shapes)[1]

    facts = check(state(), opened, restore) | versions('jax', 'orbax-checkpoint')
    return facts, lambda: measure(what, step, opened)


def orbax(what: str, asynchronous: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """A CheckpointManager as Orbax's own guide opens it."""
    import orbax.checkpoint as ocp

    state, step, shapes = jax_loop()

    @contextlib.contextmanager
    def opened(folder: Path) -> Iterator[tuple[Call, Call]]:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=asynchronous
        )
        with ocp.CheckpointManager(folder, options=options) as manager:
            yield (
                lambda: manager.save(1, args=ocp.args.StandardSave(state())),
                manager.wait_until_finished,
            )

    def restore(folder: Path) -> dict:
        with ocp.CheckpointManager(folder) as manager:
            return manager.restore(1, args=ocp.args.StandardRestore(shapes))

    facts = check(state(), opened, restore) | versions('jax', 'orbax-checkpoint')
    return facts, lambda: measure(what, step, opened)


# --------------------------------------------------------------------------------------- PyTorch


def torch_save(what: str, flush: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """`torch.save` of the same state; with `flush`, on the disk when it returns, as the others are."""
    import torch

    generator = torch.Generator().manual_seed(1)
    state = {
        part: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for part in PARTS
    }
    x = torch.randn(WIDTH, WIDTH, generator=generator)

    def step() -> None:
        y = x
        for _ in range(PRODUCTS):
            y = y @ y / WIDTH**0.5
        for part in PARTS:
            torch._foreach_mul_(list(state[part].values()), 0.9999)

    @contextlib.contextmanager
    def opened(folder: Path) -> Iterator[tuple[Call, Call]]:
        def save() -> None:
            with (folder / 'state.pt').open('wb') as file:
                torch.save(state, file)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())

        yield save, lambda: None

    facts = check(state, opened, lambda folder: torch.load(folder / 'state.pt'))
    return facts | versions('torch'), lambda: measure(what, step, opened)


def versions(*packages: str) -> dict[str, Any]:
    return {'versions': {name: importlib.metadata.version(name) for name in packages}}


def case(what: str, unit: str) -> Case:
    module = 'experiments.speed.checkpoints'
    return Case(
        name=f'checkpoint/{what}',
        unit=unit,
        higher_is_better=False,
        foreign_limit=0.5,
        contestants=(
            Contestant('lm', f'{module}:ours', {'what': what}),
            *(
                Contestant(name, f'{module}:orbax', {'what': what, 'asynchronous': asynchronous})
                for name, asynchronous in (('Orbax', True), ('Orbax, synchronous', False))
            ),
            *(
                Contestant(name, f'{module}:torch_save', {'what': what, 'flush': flush})
                for name, flush in (('torch.save', False), ('torch.save, fsync', True))
            ),
        ),
    )


CASES = [case('stall', 'ms'), case('total', 's'), case('excess', 's')]
