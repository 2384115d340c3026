"""A plan: what a config's training step would take on devices that need not be here.

The step is the one that trains, compiled for the devices of a topology and not run. What is said of it is
read from the compiled program: memory, products, bytes and collectives; times are of a roofline, with the
peaks of `lm/chips.py`: a step is not shorter than that, and usually longer.
"""

import dataclasses
import itertools
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from lm import chips, flops, hlo, hlo_cost, hlo_memory, memory_advice, mesh, plan_inputs, topology
from lm import config as configs
from lm import run as runs
from lm.config import Config
from lm.errors import InputError
from lm.model_flops import flops_per_token
from lm.run import Run

BUFFERS = 20  # So many of the largest are named.
_SHARE = (
    0.75  # Of a GPU's memory, that JAX takes (docs.jax.dev/en/latest/gpu_memory_allocation.html).
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What is planned for.

    Attributes:
        name: of a topology; '' is this machine.
        devices: its devices.
        price: of a chip for an hour; None is not known.
    """

    name: str
    devices: list[jax.Device]
    price: float | None = None

    @property
    def chip(self) -> chips.Chip | None:
        """What is known of its devices."""
        return chips.of(self.devices[0])

    @property
    def platform(self) -> str:
        """cpu | gpu | tpu."""
        return self.devices[0].platform

    @property
    def memory(self) -> float | None:
        """Bytes of a device; CPU devices share this machine's."""
        if self.platform == 'cpu':
            total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
            return total / len(self.devices)
        return self.chip.memory if self.chip else None


def target(name: str = '', price: float | None = None) -> Target:
    """Returns what to plan for: a topology (`lm.topology.devices`), or this machine.

    Raises:
        InputError: there is no such topology.
    """
    return Target(name, topology.devices(name) if name else jax.devices(), price)


def plan(config: Config, on: Target, workdir: Path | None = None) -> dict[str, Any]:
    """Returns what a training step takes (JSON): see the keys below.

    Raises:
        InputError: the mesh does not fit the devices, or the batch, or a parameter.
    """
    run = build(config, on, workdir)
    found = compiled(run, on)
    return {
        'topology': on.name or f'{on.devices[0].device_kind} x {len(on.devices)}',
        'device': on.devices[0].device_kind,
        'devices': len(on.devices),
        'mesh': dict(run.mesh.shape),
        'parameters': run.steps.parameters,
        'batch': {'rows': config.data.batch_size, 'length': config.data.length},
        'remat': config.model.remat,
        'room': on.memory,
        **found,
        **estimate(run, on, found),
        'cache': cache(run),
        'advice': [] if found['fits'] is not False else advice(run, on, found['memory']),
    }


def advice(run: Run, on: Target, memory: dict[str, int]) -> list[str]:
    """Returns what to change where it does not fit, a clause each."""
    kinds = {kind: size for kind, size in memory.items() if kind != 'total'}
    made = {'activations': sum(kinds.pop(kind, 0) for kind in ('activations', 'temporaries'))}
    room = None if on.memory is None or 'total' not in memory else int(on.memory)
    return [
        str(one)
        for one in memory_advice.advise(kinds | made, room, run.config, dict(run.mesh.shape))
    ]


def build(config: Config, on: Target, workdir: Path | None = None) -> Run:
    """Returns the run of a config over the devices that are planned for; nothing is trained or read."""
    try:
        device_mesh = runs.check_mesh(config, on.devices)
    except InputError as error:
        raise InputError(f'{error}{_proposal(config, on)}') from None
    return runs.build(config, plan_inputs.vocabulary(config, workdir), device_mesh)


def _proposal(config: Config, on: Target) -> str:
    """Returns a mesh that fits where the config's does not; '' where it is not the mesh."""
    if mesh.fits(config.mesh, len(on.devices)):
        return ''
    best = next(meshes(config, on), None)
    if best is None:
        return ''
    flags = ' '.join(f'--config.mesh.{axis}={getattr(best, axis)}' for axis in mesh.AXES)
    return f' One that fits: {flags}'


def compiled(run: Run, on: Target) -> dict[str, Any]:
    """Returns what is read from the compiled step: `memory`, `flops`, `moved`, `collectives`, `buffers`.

    `fits` is False, and `why` the compiler's words, where it gives up because memory does not suffice; what
    it would have said is then not there.
    """
    fields = plan_inputs.batch(run)
    started = time.perf_counter()
    with jax.set_mesh(run.mesh):
        traced = run.steps.step.trace(run.steps.shapes, fields, plan_inputs.rates(run))
        asked = flops.count(traced.jaxpr)
        lowered = traced.lower(lowering_platforms=({'gpu': 'cuda'}.get(on.platform, on.platform),))
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            executable, why = None, _shortened(str(error))
    given = arguments(run, fields)
    found = {
        'tokens': plan_inputs.tokens(fields),
        'flops': {'program': asked},
        'compile_seconds': round(time.perf_counter() - started, 1),
    }
    if executable is None:
        return found | {'fits': False, 'why': why, 'memory': given}
    module = hlo.parse(executable.as_text())
    live = hlo_memory.peak(module)
    memory = _memory(given, executable.memory_analysis(), live, on)
    room = on.memory
    fits = None if room is None else memory['total'] <= room
    return found | {
        'fits': fits,
        'why': _why(memory['total'], room, on),
        'memory': memory,
        'buffers': _largest(live),
        'flops': {'program': asked, 'device': max(hlo_cost.flops(module), asked / len(on.devices))},
        'moved': hlo_cost.moved(module),
        'collectives': [
            dataclasses.asdict(one) | {'source': _short(one.source)}
            for one in hlo_cost.collectives(module, dict(run.mesh.shape))
        ],
    }


def _why(total: int, room: float | None, on: Target) -> str:
    """Returns why it does not fit, or what it takes to fit; '' where there is nothing to say."""
    if room is None:
        return ''
    if total > room:
        return f'{gb(total)} of {gb(room)}'
    if on.platform == 'gpu' and total > _SHARE * room:
        return 'JAX takes three quarters of a GPU: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.97'
    return ''


def _shortened(message: str) -> str:
    """Returns the line of a compiler's message that says what does not fit."""
    message = ' '.join(message.split())
    found = re.search(r'(Used [\d.]+\w of [\d.]+\w \w+)[^.]*\.', message) or re.search(
        r'Ran out of memory[^.]*\.[^.]*\.[^.]*\.', message
    )
    return found[0] if found else message[:300]


def arguments(run: Run, fields: Any) -> dict[str, int]:
    """Returns the bytes that a device holds between steps, by kind."""
    state = run.steps.shapes
    return {
        'parameters': mesh.held(state.params),
        'optimizer': mesh.held(state.opt_state),
        'average': mesh.held(state.ema),
        'batch': mesh.held(fields),
    }


def _memory(given: dict[str, int], stats: Any, live: list, on: Target) -> dict[str, int]:
    """Returns bytes of a device by kind, which add up to `total`.

    `activations` are arrays of the forward pass that are there when most is, `gradients` those of the
    backward pass; `temporaries` is all else that XLA has set aside, `padding` what arguments take beyond
    their numbers.
    """
    kinds = {'activations': 0, 'gradients': 0}
    for buffer in live:
        if kind := _kind(buffer.op_name):
            kinds[kind] += buffer.bytes
    temporary, seen = stats.temp_size_in_bytes, sum(kinds.values())
    if seen > temporary:  # XLA lets more arrays share a place than are seen to.
        kinds = {kind: size * temporary // seen for kind, size in kinds.items()}
    code = 0 if on.platform == 'cpu' else stats.generated_code_size_in_bytes
    made = {
        **given,
        'padding': max(0, stats.argument_size_in_bytes - sum(given.values())),
        **kinds,
        'temporaries': temporary - sum(kinds.values()),
        'results': stats.output_size_in_bytes - stats.alias_size_in_bytes,
        'program': code,
    }
    return made | {'total': sum(made.values())}


def _kind(op_name: str) -> str:
    if 'transpose(' in op_name:
        return 'gradients'
    return 'activations' if 'jvp(' in op_name else ''


def _largest(live: list[hlo_memory.Buffer]) -> list[dict[str, Any]]:
    """Returns the largest of the arrays at the peak, those of one shape from one line together."""
    found: dict[tuple, list[int]] = {}
    for one in live:
        key = (one.shape, _short(one.source), _kind(one.op_name) or 'temporaries', one.op_name)
        total = found.setdefault(key, [0, 0])
        total[0] += 1
        total[1] += one.bytes
    names = ('shape', 'source', 'kind', 'op_name')
    rows = [
        dict(zip(names, key, strict=True)) | {'count': count, 'bytes': size}
        for key, (count, size) in found.items()
    ]
    return sorted(rows, key=lambda row: -row['bytes'])[:BUFFERS]


def _short(source: str) -> str:
    """Returns `lm/step.py:105` of the path of a line, wherever packages are installed."""
    _, installed, rest = source.rpartition('/site-packages/')
    _, ours, below = source.rpartition('/lm/')
    if installed:
        return rest
    return f'lm/{below}' if ours else source


def estimate(run: Run, on: Target, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the roofline of a compiled step: seconds, MFU, tokens a day, chip-hours, cost.

    `seconds` of products, memory and links are each as if nothing else took time; `step` is the largest of
    them: all three at once. Nothing is said where a peak is not known, as of a CPU, or of 8 bits.
    """
    chip, tokens = on.chip, found['tokens']
    per_token = flops_per_token(run)
    model = {name: count * tokens if count else None for name, count in per_token.items()}
    made: dict[str, Any] = {'model_flops': model, 'roofline': None}
    if 'device' not in found['flops']:
        return made
    made['intensity'] = found['flops']['device'] / max(found['moved'], 1)
    # Products of 8 bits have peaks of their own, which are not in the table.
    known = chip and run.config.model.matmul == 'same'
    peak = chip.peak(run.config.model.dtype) if known else None
    if not chip or not peak or not chip.bandwidth:
        return made
    seconds = {
        'products': found['flops']['device'] / peak,
        'memory': found['moved'] / chip.bandwidth,
        'links': sum(one['sent'] for one in found['collectives']) / chip.link,
    }
    step = max(seconds.values())
    count = len(on.devices)
    hours = run.config.train.steps * step / 3600 * count / chip.devices
    made['roofline'] = {
        'peak': peak,
        'bandwidth': chip.bandwidth,
        'link': chip.link,
        'source': chip.source,
        'seconds': seconds,
        'step': step,
        'one_after_the_other': sum(seconds.values()),
        'bound': max(seconds, key=seconds.get),
        **{name: f / (step * peak * count) if f else None for name, f in model.items()},
        'tokens_per_day': tokens / step * 86_400,
        'steps': run.config.train.steps,
        'chip_hours': hours,
        'price': on.price,
        'cost': None if on.price is None else on.price * hours,
    }
    return made


def cache(run: Run) -> dict[str, int] | None:
    """Returns the bytes of what decoding remembers: of a row of T tokens, and of a token of it.

    None of what writes nothing, an encoder.
    """
    model, length = run.steps.model, run.config.data.length
    if not hasattr(model, 'make_cache'):
        return None
    shapes = jax.eval_shape(lambda: model.make_cache(1, length))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return {'row': size, 'token': size // length, 'length': length}


def gb(size: float | None) -> str:
    """Returns bytes for people: 15.9 GB, of 10^9."""
    if size is None:
        return '–'
    for unit, scale in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6)):
        if abs(size) >= scale:
            return f'{size / scale:.3g} {unit}'
    return f'{size / 1e3:.3g} kB'


def meshes(config: Config, on: Target) -> Iterator[configs.MeshConfig]:
    """Yields meshes over the devices, those that keep most of the config's first.

    All ways to share the devices among `data`, `fsdp` and `tensor`, `tensor` at most 8; the other axes are
    as the config has them, or 1 where they do not divide the devices.
    """
    count = len(on.devices)
    others = [axis for axis in mesh.AXES if axis not in ('data', 'fsdp', 'tensor')]
    fixed = math.prod(max(1, getattr(config.mesh, axis)) for axis in others)
    rest = count // fixed if count % fixed == 0 else 0
    if not rest:
        config, rest = (
            dataclasses.replace(
                config, mesh=dataclasses.replace(config.mesh, **dict.fromkeys(others, 1))
            ),
            count,
        )
    sizes = [n for n in range(1, rest + 1) if rest % n == 0]
    wanted = config.mesh
    shares = [
        (rest // (fsdp * tensor), fsdp, tensor)
        for fsdp, tensor in itertools.product(sizes, [n for n in sizes if n <= 8])
        if rest % (fsdp * tensor) == 0
    ]

    def change(share: tuple[int, int, int]) -> tuple:
        data, fsdp, tensor = share
        return (
            tensor != max(1, wanted.tensor),
            fsdp != max(1, wanted.fsdp),
            data != wanted.data,
            tensor,
        )

    for data, fsdp, tensor in sorted(shares, key=change):
        yield dataclasses.replace(config.mesh, data=data, fsdp=fsdp, tensor=tensor)
