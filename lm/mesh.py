"""The device mesh: how rows, positions and parameters are laid over devices.

Six axes: `data`, `fsdp` and `expert` split the rows of a batch, `fsdp` and `tensor` split parameters,
`expert` those of experts, `stage` the layers, and `sequence` positions. Devices of the outer axes are far
apart, those of the inner ones near. Several slices of a pod are joined by one of the outer axes.

A parameter's layout comes from the first of `PARAMETER_RULES` whose expression is found in its path; a
parameter that no rule covers is an error, so that none is replicated by oversight.
"""

import collections
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import tree
from lm.config import MeshConfig
from lm.errors import InputError, lookup
from lm.rows import HostRows

# From the outermost, whose devices talk least, to the innermost, whose talk most.
AXES = ('stage', 'data', 'fsdp', 'expert', 'sequence', 'tensor')
ROWS = ('data', 'fsdp', 'expert')
ACROSS = ('data', 'stage', 'fsdp')  # What may join slices: little is sent along them.

# Path -> one mesh axis (or None) for each of the parameter's own dimensions. Layers are stacked: their
# leading axis [N] is split over `stage`.
PARAMETER_RULES = (
    (r'embed/embedding$', ('tensor', 'fsdp')),  # [V, D]
    (r'(position|token_type)/embedding$', (None, 'fsdp')),  # [T, D]
    (r'query_stream$', (None,)),  # [D]
    (r'embed_projection/kernel$', (None, 'fsdp')),  # [embedding_dim, D]
    (r'embed_projection/bias$', (None,)),  # [D]
    (r'output_projection/kernel$', ('fsdp', None)),  # [D, embedding_dim]
    (r'relative/bias$', (None, 'tensor')),  # [buckets, H]
    (r'attention/(query|key|value|gate|relative)/kernel$', ('fsdp', 'tensor', None)),  # [D, H, K]
    (r'attention/(query|key|value|gate)/bias$', ('tensor', None)),  # [H, K]
    (r'attention/relative/\w+_bias$', ('tensor', None)),  # [H, K]
    (r'attention/relative/type_embedding$', (None, 'tensor', None)),  # [2, H, K]
    (r'attention/summary_(key|value)$', (None, 'tensor', None)),  # [length, G, K]
    (r'attention/(query|key|value)_conv/kernel$', (None, 'tensor', None)),  # [W, H, K]
    (r'attention/decay/down/kernel$', ('fsdp', None)),  # [D, rank]
    (r'attention/decay/up/kernel$', (None, 'tensor', None)),  # [rank, G, K]
    (r'attention/decay/up/bias$', ('tensor', None)),  # [G, K]
    (r'attention/(decay|beta)/kernel$', ('fsdp', 'tensor')),  # [D, G]
    (r'attention/decay/(bias|log_rate)$', ('tensor',)),  # [G]
    (r'attention/out/kernel$', ('tensor', None, 'fsdp')),  # [H, K, D]
    (r'mlp/(up|gate)/kernel$', ('fsdp', 'tensor')),  # [D, F]
    (r'mlp/(up|gate)/bias$', ('tensor',)),  # [F]
    (r'mlp/down/kernel$', ('tensor', 'fsdp')),  # [F, D]
    (r'mlp/router/kernel$', ('fsdp', None)),  # [D, E]
    (r'mlp/experts/(up|gate)/kernel$', ('expert', 'fsdp', 'tensor')),  # [E, D, F]
    (r'mlp/experts/(up|gate)/bias$', ('expert', 'tensor')),  # [E, F]
    (r'mlp/experts/down/kernel$', ('expert', 'tensor', 'fsdp')),  # [E, F, D]
    (r'mlp/experts/down/bias$', ('expert', None)),  # [E, D]
    (r'head/kernel$', ('fsdp', 'tensor')),  # [D, V]
    (r'logit_bias$', ('tensor',)),  # [V]
    (r'head_\w+/(dense|pooler|out)/kernel$', ('fsdp', None)),  # [D, D] or [D, classes]
    (r'head_\w+/((dense|pooler|out|output)/)?bias$', (None,)),  # [D], [classes] or [V]
    (r'(attention/out|mlp/down)/bias$', (None,)),  # [D]
    (r'norm/(scale|bias)$', (None,)),  # [D] or [K]
)


def sizes(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    expert: int = 1,
    stage: int = 1,
    slices: int = 0,
    across: str = '',
) -> MeshConfig:
    """Returns a mesh's config in which what is not given is not split."""
    return MeshConfig(data, fsdp, tensor, sequence, expert, stage, slices, across)


def one_device() -> Mesh:
    """Returns the mesh of the first device alone."""
    return make(sizes(), jax.local_devices()[:1])


def make(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of a config over all devices.

    Of several slices (of TPU pods, or of what `config.slices` says) each has its own part of one of the
    axes `ACROSS`, so that all else stays inside of a slice.

    Raises:
        InputError: the axes do not multiply to the number of devices, or slices do not divide them.
    """
    devices = jax.devices() if devices is None else devices
    shape = [getattr(config, axis) for axis in AXES]
    text = ', '.join(
        f'{axis}={size}'
        for axis, size in zip(AXES, shape, strict=True)
        if size != 1 or axis in ('data', 'fsdp')
    )
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise InputError(f'config.mesh ({text}): sizes are at least 1, and only one may be -1.')
    fixed = math.prod(size for size in shape if size != -1)
    if not fits(config, len(devices)):
        raise InputError(
            f'config.mesh ({text}) needs {"a multiple of " if -1 in shape else ""}{fixed} devices; '
            f'there are {len(devices)}. Let one axis be -1: all devices that are left.'
        )
    shape = [len(devices) // fixed if size == -1 else size for size in shape]
    grid = _grid(shape, config, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: list[int], config: MeshConfig, devices: list[jax.Device]) -> np.ndarray:
    """Returns devices by place in the mesh, those of each slice as near to each other as they are."""
    slices = _slices(config, devices)
    axis = AXES.index(_across(shape, config, len(slices)) or ACROSS[0])
    if shape[axis] % len(slices):
        slices = [devices]
    inner = [size // len(slices) if i == axis else size for i, size in enumerate(shape)]
    parts = [
        mesh_utils.create_device_mesh(inner, part, allow_split_physical_axes=True)
        for part in slices
    ]
    return np.concatenate(parts, axis=axis)


def _across(shape: list[int], config: MeshConfig, count: int) -> str:
    """Returns the axis that joins so many slices; '' if none can, and the config does not ask for it."""
    asked, place = config.across, f'config.mesh.across = {config.across!r}'
    if asked:
        lookup(dict.fromkeys(ACROSS), asked, 'config.mesh.across')
    can = [axis for axis in ACROSS if shape[AXES.index(axis)] % count == 0]
    if asked in can or (not asked and can):
        return asked or can[0]
    if not asked and not config.slices:
        return ''
    hint = (
        f"Did you mean '{can[0]}'?"
        if can
        else f'Let one of {", ".join(ACROSS)} be a multiple of it.'
    )
    text = ', '.join(f'{axis}={shape[AXES.index(axis)]}' for axis in ACROSS)
    raise InputError(f'{place}: {count} slices cannot divide it ({text}). {hint}')


def _slices(config: MeshConfig, devices: list[jax.Device]) -> list[list[jax.Device]]:
    """Returns the devices of each slice."""
    by_slice = collections.defaultdict(list)
    for device in devices:
        by_slice[getattr(device, 'slice_index', 0)].append(device)
    found = [by_slice[index] for index in sorted(by_slice)]
    if config.slices in (0, len(found)):
        return found
    if config.slices < 0 or len(devices) % config.slices or len(found) > 1:
        there = (
            f'the devices are in {len(found)}'
            if len(found) > 1
            else f'there are {len(devices)} devices'
        )
        raise InputError(
            f'config.mesh.slices = {config.slices}, and {there}. 0 takes them as they are.'
        )
    size = len(devices) // config.slices
    return [devices[start : start + size] for start in range(0, len(devices), size)]


def fits(config: MeshConfig, count: int) -> bool:
    """Returns whether the axes multiply to so many devices."""
    shape = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    return count % fixed == 0 if -1 in shape else count == fixed


def constrain(x: jax.Array, spec: tuple[Any, ...]) -> jax.Array:
    """Lays an activation over the current mesh (`jax.set_mesh`); returns it as it is without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))


def row_shards(mesh: Mesh) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_batch(
    rows: int, length: int, accumulation: int, mesh: Mesh, place: str, micro_batches: int = 1
) -> None:
    """Raises InputError if the mesh cannot divide a batch.

    Args:
        rows: B, the rows of a batch over all devices.
        length: T, tokens.
        accumulation: the equal parts that each batch is cut into.
        mesh: the device mesh.
        place: the config key that sets `rows`.
        micro_batches: those that each of the parts is cut into for a pipeline.
    """
    parts = row_shards(mesh) * accumulation * micro_batches
    if rows % parts:
        axes = ' x '.join(
            f'mesh.{axis} {mesh.shape[axis]}'
            for axis in ROWS
            if mesh.shape[axis] > 1 or axis != 'expert'
        )
        raise InputError(
            f'{place} = {rows} rows cannot be divided by {parts} ({axes} x '
            f'optimizer.accumulation {accumulation}'
            f'{f" x model.pipeline_microbatches {micro_batches}" if micro_batches > 1 else ""}). '
            f'The nearest that can: {max(parts, round(rows / parts) * parts)}.'
        )
    if length % mesh.shape['sequence']:
        parts = mesh.shape['sequence']
        divisors = (n for n in range(1, length + 1) if length % n == 0)
        degree = min(divisors, key=lambda n: abs(n - parts))
        raise InputError(
            f'config.data.length = {length} tokens cannot be divided by mesh.sequence = {parts}. '
            f'The nearest that can: {max(parts, round(length / parts) * parts)} tokens, '
            f'or mesh.sequence = {degree}.'
        )


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each parameter (arrays or shapes), by `PARAMETER_RULES`.

    Raises:
        ValueError: no rule covers a parameter.
        InputError: a mesh axis does not divide the dimension that it splits.
    """

    def sharding(path: str, leaf: Any) -> NamedSharding:
        try:
            axes = tree.first_match(PARAMETER_RULES, path)
        except KeyError:
            raise ValueError(
                f"no rule in lm/mesh.py PARAMETER_RULES covers the parameter '{path}' "
                f'of shape {leaf.shape}.'
            ) from None
        leading = len(leaf.shape) - len(axes)  # 1 for stacked layers
        axes = ('stage' if mesh.shape['stage'] > 1 else None,) * leading + axes
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                hint = ' Set config.model.vocab_multiple.' if path.endswith('embedding') else ''
                raise InputError(
                    f"mesh.{axis} = {mesh.shape[axis]} cannot divide the {size} in parameter '{path}' "
                    f'of shape {tuple(leaf.shape)}.{hint}'
                )
        return NamedSharding(mesh, P(*axes))

    return tree.map_with_path(sharding, params)


def state_shardings(state: Any, params: Any, mesh: Mesh) -> Any:
    """Returns shardings of a whole state: leaves that mirror a parameter lie as it does.

    A leaf mirrors a parameter if its path ends with the parameter's and its shape is the same
    (moments, averages); all others (counters, factored moments) are replicated.
    """
    by_path = {
        path: (leaf.shape, sharding)
        for path, leaf, sharding in zip(
            tree.paths(params),
            jax.tree.leaves(params),
            jax.tree.leaves(parameter_shardings(params, mesh)),
            strict=True,
        )
    }

    def sharding(path: str, leaf: Any) -> NamedSharding:
        keys = path.split('/')
        for start in range(len(keys)):
            shape, found = by_path.get('/'.join(keys[start:]), (None, None))
            if shape == leaf.shape:
                return found
        return NamedSharding(mesh, P())

    return tree.map_with_path(sharding, state)


def held(arrays: Any) -> int:
    """Returns the bytes that a device holds of a tree of arrays or shapes, by their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(arrays)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's `[B, T]` fields: rows and positions are split."""
    return NamedSharding(mesh, P(ROWS, 'sequence'))


def agree(flag: bool) -> bool:
    """Returns whether the flag is set on any host: the same answer on all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def barrier(name: str) -> None:
    """Returns when every host has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def rows_here(mesh: Mesh) -> HostRows:
    """Returns which rows of each batch the devices of this host hold.

    Hosts that hold the same ones, as where a stage, positions or heads are split over them, each make them.
    """
    split = [mesh.shape[axis] for axis in ROWS]
    where = [AXES.index(axis) for axis in ROWS]
    own = {
        int(np.ravel_multi_index([place[axis] for axis in where], split))
        for place, device in np.ndenumerate(mesh.devices)
        if device.process_index == jax.process_index()
    }
    return HostRows(row_shards(mesh), tuple(sorted(own)))


def put(batch: Any, mesh: Mesh) -> Any:
    """Puts this host's rows on its devices, as parts of the global batch.

    Args:
        batch: arrays `[rows, T]` by name, the rows of `rows_here` in their order; of several tasks by task.
        mesh: the device mesh.

    Returns:
        Global arrays `[B, T]`. The transfer goes on while this returns.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    parts, own = rows_here(mesh)

    def array(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(own)

        def held(index: tuple[slice, ...]) -> np.ndarray:
            start = own.index((index[0].start or 0) // size) * size
            return rows[start : start + size, *index[1:]]

        return jax.make_array_from_callback((size * parts, *rows.shape[1:]), sharding, held)

    return jax.tree.map(array, batch)


def prefetch(items: Iterable[Any], size: int, function: Callable[[Any], Any]) -> Iterator[Any]:
    """Yields `function(item)`, calling it `size` items ahead, so that transfers are under way."""
    queue: collections.deque[Any] = collections.deque()
    for item in items:
        queue.append(function(item))
        if len(queue) > size:
            yield queue.popleft()
    while queue:
        yield queue.popleft()
