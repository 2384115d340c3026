"""What to change where a device's memory is not enough, and what each change would save.

All is computed from bytes a device by kind, wherever those come from:

- `parameters`, `optimizer`, `average` (of the parameters), `gradients`: divided by `mesh.fsdp`.
- `activations`: what a step needs besides; they follow the rows of a device that go through the model at
  once. A stage of a pipeline keeps those of all its turns (`Pipeline`).
- `evaluation`: what an evaluation needs besides the parameters.
- any other, such as `batch`, counts, and nothing is known to shrink it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lm.config import RESUMABLE, Config
from lm.mesh import ROWS

# What FSDP shards.
STATE = ('parameters', 'optimizer', 'average', 'gradients')
# How many times as many devices may be thought of.
_DEVICES = tuple(2**n for n in range(1, 11))


@dataclasses.dataclass(frozen=True)
class Advice:
    """One change.

    Attributes:
        change: keys of the config, and their new values.
        kinds: what it makes smaller.
        before, after: bytes a device of these kinds, as they are and about as they would be.
        devices: how many times as many devices it needs.
        enough: whether all would then fit; None where the limit is not known.
    """

    change: Mapping[str, object]
    kinds: tuple[str, ...]
    before: int
    after: int
    devices: int = 1
    enough: bool | None = None

    @property
    def resumable(self) -> bool:
        """Whether the same workdir goes on with it: it moves the work, not the result."""
        return all(RESUMABLE.match(key) for key in self.change)

    def __str__(self) -> str:
        """One clause for a person."""
        keys = ' '.join(f'--config.{key}={value}' for key, value in self.change.items())
        more = f' on {self.devices} times as many devices' if self.devices > 1 else ''
        enough = {True: ', which is enough', False: ', not enough alone', None: ''}[self.enough]
        where = 'the same --workdir goes on' if self.resumable else 'in another --workdir'
        names = ', '.join(self.kinds)
        return (
            f'{keys}{more} takes {names} from {size(self.before)} to about {size(self.after)} a device'
            f'{enough} ({where})'
        )


def size(count: float) -> str:
    """Returns bytes as people read them: 2.8 GB, 350 MB, 12 kB."""
    for unit, name in ((1e15, 'PB'), (1e12, 'TB'), (1e9, 'GB'), (1e6, 'MB')):
        if count >= 0.9995 * unit:
            return f'{count / unit:.3g} {name}'
    return f'{count / 1e3:.3g} kB'


def advise(
    bytes_by_kind: Mapping[str, int], limit: int | None, config: Config, mesh: Mapping[str, int]
) -> list[Advice]:
    """Returns changes that would help, those first that leave the result as it is.

    Args:
        bytes_by_kind: bytes a device; kinds as above, those that are known.
        limit: bytes that a device has; None is not known.
        config: of the run.
        mesh: devices along each axis.
    """
    found = [
        *_shard(bytes_by_kind, limit, mesh, config),
        *_rematerialise(bytes_by_kind, config, mesh),
        *_more_micro_batches(bytes_by_kind, limit, config, mesh),
        *_fewer_rows(bytes_by_kind, limit, config, mesh),
        *_evaluate_less(bytes_by_kind, limit, config, mesh),
    ]
    if limit is None:
        return found
    total = sum(bytes_by_kind.values())
    return [
        dataclasses.replace(one, enough=total - one.before + one.after <= limit) for one in found
    ]


def _shard(
    found: Mapping[str, int], limit: int | None, mesh: Mapping[str, int], config: Config
) -> Iterable[Advice]:
    """FSDP over the devices that there are, and over more if that is not enough."""
    kinds = tuple(kind for kind in STATE if found.get(kind))
    if not kinds:
        return
    state, now, rows = sum(found[kind] for kind in kinds), mesh['fsdp'], _rows(mesh)

    def advice(parts: int, devices: int) -> Advice:
        change = {'mesh.fsdp': now * parts}
        if config.mesh.data != -1:
            change['mesh.data'] = max(1, rows * devices // (now * parts))
        return Advice(change, kinds, state, state // parts, devices)

    def needed(parts: int) -> float:
        return sum(found.values()) - state + state / parts

    here = [n for n in range(2, rows // now + 1) if rows % (now * n) == 0]
    if here:
        parts = _least(here, limit, needed)
        yield advice(parts, 1)
        if limit is None or needed(parts) <= limit:
            return
    most = rows // now
    factor = _least(_DEVICES, limit, lambda n: needed(most * n))
    yield advice(most * factor, factor)


def _rematerialise(
    found: Mapping[str, int], config: Config, mesh: Mapping[str, int]
) -> Iterable[Advice]:
    """Keeps each layer's input alone, `[B, T, D]`, and one layer's inside at a time.

    A pipeline has besides what goes into its loop and comes out of each turn, and their gradients.
    """
    before, model = found.get('activations', 0), config.model
    layers = model.num_layers
    if model.architecture == 'encoder_decoder':
        layers += model.encoder_layers or model.num_layers
    width = {'bfloat16': 2, 'float16': 2}.get(model.dtype, 4)
    rows = -(-config.data.batch_size // (config.optimizer.accumulation * _rows(mesh)))
    inputs = rows * -(-config.data.length // mesh['sequence']) * model.embed_dim * width
    pipeline = _pipeline(config, mesh)
    of_stage, turns = layers / pipeline.stages, pipeline.turns / pipeline.busy
    after = int(of_stage * turns * inputs + before / max(1, of_stage * pipeline.kept))
    if pipeline.stages > 1:
        after += int((2 + 2 * pipeline.turns / pipeline.micro_batches) * inputs)
    if model.remat != 'full' and after < before:
        yield Advice({'model.remat': 'full'}, ('activations',), before, after)


def _more_micro_batches(
    found: Mapping[str, int], limit: int | None, config: Config, mesh: Mapping[str, int]
) -> Iterable[Advice]:
    """More parts of the rows that go through the stages of a pipeline."""
    before, now = found.get('activations', 0), _pipeline(config, mesh)
    if not before or now.stages == 1:
        return
    rest = sum(found.values()) - before
    once = config.data.batch_size // config.optimizer.accumulation
    rows = math.gcd(once, config.eval.batch_size or once) // _rows(mesh)
    choices = [
        n
        for n in range(now.micro_batches + 1, rows + 1)
        if rows % n == 0 and (now.repeats == 1 or n % now.stages == 0)
    ]

    def needed(micro_batches: int) -> float:
        return before * now._replace(micro_batches=micro_batches).share / now.share

    if choices:
        best = _least(choices, limit, lambda n: rest + needed(n))
        change = {'model.pipeline_microbatches': best}
        yield Advice(change, ('activations',), before, round(needed(best)))


def _fewer_rows(
    found: Mapping[str, int], limit: int | None, config: Config, mesh: Mapping[str, int]
) -> Iterable[Advice]:
    """More parts of a batch, smaller batches, or, where a device has but one row, shorter ones."""
    before = found.get('activations', 0)
    if not before:
        return
    rest = sum(found.values()) - before
    parts, rows = config.optimizer.accumulation, config.data.batch_size
    least = parts * _rows(mesh) * _pipeline(config, mesh).micro_batches
    factors = [n for n in range(2, rows // least + 1) if rows % (n * least) == 0]
    if not factors:
        shorter = {'data.length': config.data.length // 2}
        yield Advice(shorter, ('activations',), before, before // 2)
        return
    factor = _least(factors, limit, lambda n: rest + before // n)
    for change in ({'optimizer.accumulation': parts * factor}, {'data.batch_size': rows // factor}):
        yield Advice(change, ('activations',), before, before // factor)


def _evaluate_less(
    found: Mapping[str, int], limit: int | None, config: Config, mesh: Mapping[str, int]
) -> Iterable[Advice]:
    """Fewer rows at a time in evaluations."""
    before = found.get('evaluation', 0)
    rows = config.eval.batch_size or config.data.batch_size // config.optimizer.accumulation
    least = _rows(mesh) * _pipeline(config, mesh).micro_batches
    factors = [n for n in range(2, rows // least + 1) if rows % (n * least) == 0]
    if before and factors:
        rest = sum(found.values()) - before
        factor = _least(factors, limit, lambda n: rest + before // n)
        yield Advice({'eval.batch_size': rows // factor}, ('evaluation',), before, before // factor)


class Pipeline(NamedTuple):
    """How rows go through stages (`lm/models/pipeline.py`); without any all are 1.

    Attributes:
        stages, repeats, micro_batches: S, R and M.
    """

    stages: int
    repeats: int
    micro_batches: int

    @property
    def busy(self) -> int:
        """Turns in which a stage works on rows that it was given."""
        return self.repeats * self.micro_batches

    @property
    def turns(self) -> int:
        """All of them, each of 1 / M of the rows."""
        return self.busy + self.stages - 1

    @property
    def kept(self) -> float:
        """Layers' insides in memory, of 1 / M of the rows, for each layer of a stage.

        Those of all turns, and what the backward pass of one turn takes. How it shrinks with M was
        measured on 2 and 4 virtual CPU devices without rematerialisation: to 3 %, and with R = 2 to 5 %.
        """
        return (self.turns + (self.stages > 1)) / self.repeats

    @property
    def share(self) -> float:
        """Of the activations that all rows would have at once."""
        return self.kept / self.micro_batches


def _pipeline(config: Config, mesh: Mapping[str, int]) -> Pipeline:
    stages, model = mesh.get('stage', 1), config.model
    if stages == 1:
        return Pipeline(1, 1, 1)
    return Pipeline(stages, model.pipeline_repeats, model.pipeline_microbatches or stages)


def _rows(mesh: Mapping[str, int]) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.get(axis, 1) for axis in ROWS)


def _least(choices: Sequence[int], limit: int | None, needed: Callable[[int], float]) -> int:
    """The first choice that needs no more than the limit; else the last; without a limit the first."""
    if limit is None:
        return choices[0]
    return next((choice for choice in choices if needed(choice) <= limit), choices[-1])
