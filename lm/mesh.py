"""The device mesh: how rows, positions and parameters are laid over devices.

Four axes: `data` and `fsdp` split the rows of a batch, `fsdp` and `tensor` split parameters, `sequence`
splits positions. A parameter's layout comes from the first of `PARAMETER_RULES` whose expression is found
in its path; a parameter that no rule covers is an error, so that none is replicated by oversight.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import tree
from lm.config import MeshConfig
from lm.errors import InputError

AXES = ('data', 'fsdp', 'tensor', 'sequence')
ROWS = ('data', 'fsdp')

# Path -> one mesh axis (or None) for each of the parameter's own dimensions. Layers are stacked: their
# leading axis [N] is never split.
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
    (r'head/kernel$', ('fsdp', 'tensor')),  # [D, V]
    (r'logit_bias$', ('tensor',)),  # [V]
    (r'head_\w+/(dense|pooler|out)/kernel$', ('fsdp', None)),  # [D, D] or [D, classes]
    (r'head_\w+/((dense|pooler|out|output)/)?bias$', (None,)),  # [D], [classes] or [V]
    (r'(attention/out|mlp/down)/bias$', (None,)),  # [D]
    (r'norm/(scale|bias)$', (None,)),  # [D] or [K]
)


def one_device() -> Mesh:
    """Returns the mesh of the first device alone."""
    return make(MeshConfig(1, 1, 1, 1), jax.local_devices()[:1])


def make(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of a config over all devices.

    Raises:
        InputError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    text = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f'config.mesh ({text}): sizes are at least 1, and only one may be -1.')
    fixed = math.prod(size for size in sizes if size != -1)
    if not fits(config, len(devices)):
        raise InputError(
            f'config.mesh ({text}) needs {"a multiple of " if -1 in sizes else ""}{fixed} devices; '
            f'there are {len(devices)}. Let one axis be -1: all devices that are left.'
        )
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def fits(config: MeshConfig, count: int) -> bool:
    """Returns whether the axes multiply to so many devices."""
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    return count % fixed == 0 if -1 in sizes else count == fixed


def constrain(x: jax.Array, spec: tuple[Any, ...]) -> jax.Array:
    """Lays an activation over the current mesh (`jax.set_mesh`); returns it as it is without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))


def row_shards(mesh: Mesh) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_batch(rows: int, length: int, accumulation: int, mesh: Mesh, place: str) -> None:
    """Raises InputError if the mesh cannot divide a batch.

    Args:
        rows: B, the rows of a batch over all devices.
        length: T, tokens.
        accumulation: the equal parts that each batch is cut into.
        mesh: the device mesh.
        place: the config key that sets `rows`.
    """
    parts = row_shards(mesh) * accumulation
    if rows % parts:
        raise InputError(
            f'{place} = {rows} rows cannot be divided by {parts} (mesh.data {mesh.shape["data"]} x '
            f'mesh.fsdp {mesh.shape["fsdp"]} x optimizer.accumulation {accumulation}). '
            f'The nearest that can: {max(parts, round(rows / parts) * parts)}.'
        )
    inner = mesh.shape['tensor'] * mesh.shape['sequence']
    if jax.process_count() > 1 and jax.local_device_count() % inner:
        raise InputError(
            f'mesh.tensor x mesh.sequence = {inner} must divide the {jax.local_device_count()} devices of '
            'each host: a row of a batch lies on one host.'
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
        axes = (None,) * (len(leaf.shape) - len(axes)) + axes  # stacked layers lead
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


def put(batch: Any, mesh: Mesh) -> Any:
    """Puts this host's rows on its devices, as parts of the global batch.

    Args:
        batch: arrays `[B / hosts, T]` by name, this host's contiguous rows; of several tasks by task.
        mesh: the device mesh.

    Returns:
        Global arrays `[B, T]`. The transfer goes on while this returns.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), batch)


def prefetch(items: Iterable[Any], size: int, function: Callable[[Any], Any]) -> Iterator[Any]:
    """Yields `function(item)`, calling it `size` items ahead, so that transfers are under way."""
    queue: collections.deque[Any] = collections.deque()
    for item in items:
        queue.append(function(item))
        if len(queue) > size:
            yield queue.popleft()
    while queue:
        yield queue.popleft()
