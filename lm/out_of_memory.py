"""A device whose memory is not enough: what lay in it, and what to change, in one line."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from lm import memory, memory_advice, mesh
from lm import run as runs
from lm.errors import InputError
from lm.goodput import Ledger
from lm.memory_advice import size
from lm.run import Run
from lm.writer import atomic_write

# Files in the workdir: for programs, and for https://github.com/google/pprof. Those of process 3, say, are
# `out_of_memory.process3.json` and `.prof`.
FILE, PROFILE = 'out_of_memory.json', 'out_of_memory.prof'
# Parts of the ledger -> words for where it happened.
_PLACES = {
    'build': 'making the first parameters',
    'restore': 'restoring a checkpoint',
    'compile': 'the first step',
    'training': 'a step',
    'repeated': 'a step',
    'evaluation': 'an evaluation',
    'checkpoint': 'saving a checkpoint',
    'report': 'writing samples',
}
_MOST_ARRAYS = 40
# What other memories are called, which are a kernel's matter: nothing here would help.
_SMALL = ('memory space vmem', 'memory space smem', 'shared memory')


def is_out_of_memory(error: BaseException | None) -> bool:
    """Returns whether XLA raised it since a device's memory is not enough, in a run or in a compilation."""
    text = str(error).lower()
    return (
        isinstance(error, jax.errors.JaxRuntimeError)
        and 'out of memory' in text
        and not any(name in text for name in _SMALL)
    )


class Guard:
    """A context whose end, where the device's memory was not enough, is an `InputError` with advice.

    Attributes:
        run: the run, once it is built; before that nothing is told apart.
        program: shapes of a step's batch and rates, once there was one.
    """

    def __init__(self, workdir: Path, ledger: Ledger) -> None:
        self._workdir, self._ledger = workdir, ledger
        self.run: Run | None = None
        self.program: tuple[Any, Any] | None = None

    def __enter__(self) -> 'Guard':
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if is_out_of_memory(error) and self.run is not None:
            raise InputError(self.tell(str(error))) from error

    def tell(self, error: str) -> str:
        """Writes what is known into the workdir; returns the line for a person."""
        run, part = self.run, self._ledger.part
        found, limit = by_kind(run, self.program, part), bytes_limit(run.mesh.local_devices)
        advice = memory_advice.advise(found, limit, run.config, dict(run.mesh.shape))
        first = error.strip().splitlines()[0][:200]
        content = {
            'during': part,
            'error': error[:10_000],
            'limit': limit,
            'bytes_by_kind': found,
            'advice': [str(one) for one in advice],
            'memory_stats': run.mesh.local_devices[0].memory_stats(),
            **live_arrays(run),
        }
        path = self._own(FILE)
        atomic_write(path, json.dumps(content, indent=1, default=str) + '\n')
        with contextlib.suppress(Exception):  # The device may have nothing left for that either.
            jax.profiler.save_device_memory_profile(str(self._own(PROFILE)))
        needs = ', '.join(f'{kind} {size(count)}' for kind, count in found.items() if count)
        has = f', and it has {size(limit)}' if limit else ''
        return (
            f'out of memory in {_PLACES.get(part, "the start")} ({first}): a device is to hold {needs}'
            f'{has}. {_advised(advice)} What lay in memory is in {path}; checkpoints are kept.'
        )

    def _own(self, name: str) -> Path:
        """A file of this process: any of several may be the one whose device is full."""
        path, index = self._workdir / name, jax.process_index()
        return path.with_stem(f'{path.stem}.process{index}') if index else path


def _advised(advice: list[memory_advice.Advice]) -> str:
    if not advice:
        return 'Take a smaller model, or more devices.'
    return f'What helps: {"; or ".join(map(str, advice))}.'


def bytes_limit(devices: list[Any]) -> int | None:
    """Returns the memory of the first of this process's devices: what it may use; of a CPU, its share."""
    stats = devices[0].memory_stats() or {}
    if devices[0].platform == 'cpu':
        return memory.machine_bytes() // len(devices)
    return stats.get('bytes_limit')


def by_kind(run: Run, program: tuple[Any, Any] | None, part: str = '') -> dict[str, int]:
    """Returns bytes a device by kind, as `lm.memory_advice` takes them; those that can be known.

    Args:
        run: the run.
        program: shapes of a step's batch and rates; None is not known yet.
        part: of the ledger; in an evaluation its memory counts, and not that of a step.
    """
    shapes = run.steps.shapes
    found = {
        'parameters': mesh.held(shapes.params),
        'optimizer': mesh.held(shapes.opt_state),
        'average': mesh.held(shapes.ema),
    }
    if program is None:
        return found
    found['batch'] = mesh.held(program[0]) * (run.config.data.prefetch + 1)
    if part == 'evaluation':
        temporary = max((_temporary(*each) for each in _evaluations(run, program[0])), default=0)
        return found | {'evaluation': temporary}
    temporary = _temporary(run.steps.step, (shapes, *program))
    gradients = min(found['parameters'], temporary)
    return found | {'gradients': gradients, 'activations': temporary - gradients}


def _evaluations(run: Run, batch: Any) -> list[tuple[Any, tuple[Any, Any]]]:
    """The compiled functions of evaluations, and shapes of what they take."""
    found = []
    for task, part in run.tasks.items():
        rows = runs.evaluation_rows(part.config)
        fields = batch.get(task, {}) if run.others else batch
        shapes = {
            name: jax.ShapeDtypeStruct(
                (rows, *field.shape[1:]), field.dtype, sharding=field.sharding
            )
            for name, field in fields.items()
        }
        if shapes:
            found.append((run.steps.evaluations[task], (run.steps.shapes.params, shapes)))
    return found


def _temporary(function: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes a device that a function needs besides its arguments; 0 where it cannot be compiled."""
    try:
        analysis = function.lower(*arguments).compile().memory_analysis()
    except Exception:  # noqa: BLE001  it is compiled to tell more, and the error that counts is there
        return 0
    return int(analysis.temp_size_in_bytes) if analysis else 0


def live_arrays(run: Run) -> dict[str, Any]:
    """Returns what lies on this process's first device: bytes by kind, and the largest arrays.

    The kind of an array is told by its shape and dtype: of those that are alike, the first are parameters,
    and then the optimizer's.
    """
    shapes, waiting = run.steps.shapes, {}
    for kind, part in (
        ('parameters', shapes.params),
        ('optimizer', shapes.opt_state),
        ('average', shapes.ema),
    ):
        waiting[kind] = Counter((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(part))
    rows, totals = [], Counter()
    for array in jax.live_arrays():
        if array.is_deleted():
            continue
        look = array.shape, str(array.dtype)
        kind = next((kind for kind, count in waiting.items() if count[look] > 0), 'other')
        if kind != 'other':
            waiting[kind][look] -= 1
        held = mesh.held(array)
        totals[kind] += held
        rows.append({'kind': kind, 'shape': list(array.shape), 'dtype': look[1], 'bytes': held})
    rows.sort(key=lambda row: -row['bytes'])
    return {'live_bytes_by_kind': dict(totals), 'largest_arrays': rows[:_MOST_ARRAYS]}


def shapes_of(values: Any) -> Any:
    """Returns the shapes of arrays and numpy's numbers, with their shardings where they have one."""

    def shape(value: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(value, 'sharding', None)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    return jax.tree.map(shape, values)
