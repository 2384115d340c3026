"""What a compiled program costs a device: FLOPs of its products, bytes of main memory, collectives."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.hlo import Array, Computation, Instruction, Module, leaves

COLLECTIVES = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-broadcast',
    'collective-permute',
)
# These name memory, and move none.
_FREE = {
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'iota'),
    *('while', 'conditional', 'call', 'optimization-barrier', 'partition-id', 'replica-id'),
    *('async-start', 'async-update', 'async-done', 'copy-done', 'slice-done', 'add-dependency'),
    *('send-done', 'recv-done', 'send', 'recv', 'domain'),
    *(f'{kind}-done' for kind in COLLECTIVES),
}
# Custom calls that only name memory too.
_FREE_CALLS = ('AllocateBuffer', 'ConcatBitcast', 'Sharding', 'AssumeGatherIndicesInBound')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind, over the same axes, from the same line.

    Attributes:
        kind: of `COLLECTIVES`.
        axes: of the mesh, that its groups go along; () where it is not told.
        devices: in a group.
        count: how many run in a step.
        bytes: of the arrays, in all of them: what comes in of reduce-scatter, what comes out of others.
        sent: bytes that a device sends, at least: of rings, `bytes` times (n - 1) / n, twice of all-reduce.
        source: `FILE:LINE`.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    count: int
    bytes: int
    sent: float
    source: str


def flops(module: Module) -> float:
    """Returns 2 for each product of two numbers in the matrix products that a device does in a run."""
    return sum(
        times * product_flops(computation, one)
        for computation, one, times in module.executed(inside=True)
        if one.op in ('dot', 'convolution', 'custom-call')
    )


def product_flops(computation: Computation, one: Instruction) -> float:
    """Returns the FLOPs of a product; 0 of custom calls that are not known to be one."""
    if one.op == 'custom-call' and not re.search(
        r'custom_call_target="__cublas\$lt\$|"__cublas\$gemm', one.text
    ):
        return 0
    out = one.arrays[0]
    left, right = (operand.arrays[0] for operand in computation.operands(one)[:2])
    if one.op == 'convolution':
        return _convolution_flops(one, left, right)
    summed = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', one.text)
    axes = [int(n) for n in re.findall(r'\d+', summed[1])] if summed else []
    return 2.0 * out.count * math.prod(left.sizes[axis] for axis in axes)


def _convolution_flops(one: Instruction, left: Array, right: Array) -> float:
    """A TPU's products are convolutions, whose windows see mostly nothing: that does not count."""
    left_names, right_names, out_names = re.split(
        '_|->', re.search(r'dim_labels=([\w>\-]+)', one.text)[1]
    )
    size = lambda array, names, name: array.sizes[names.index(name)]  # noqa: E731
    number = re.search(r'batch_group_count=(\d+)', one.text)
    rows = size(left, left_names, 'b') // (int(number[1]) if number else 1)
    found = 2.0 * rows * size(right, right_names, 'i') * size(right, right_names, 'o')
    spatial = sorted(name for name in out_names if name.isdigit())
    for place, name in enumerate(spatial):
        window = {
            key: re.search(rf'\b{key}=([\d_x\-]+)', one.text)
            for key in ('stride', 'pad', 'lhs_dilate', 'rhs_dilate')
        }
        part = {key: value[1].split('x')[place] for key, value in window.items() if value}
        found *= _seen(
            size(left, left_names, name),
            size(right, right_names, name),
            size(one.arrays[0], out_names, name),
            int(part.get('stride', 1)),
            int(part.get('pad', '0_0').split('_')[0]),
            int(part.get('lhs_dilate', 1)),
            int(part.get('rhs_dilate', 1)),
        )
    return found


def _seen(
    inputs: int, window: int, outputs: int, stride: int, pad: int, spread: int, gap: int
) -> int:
    """Returns how many pairs of an output and a place of its window meet an input."""
    places = np.arange(outputs)[:, None] * stride - pad + np.arange(window) * gap
    last = (inputs - 1) * spread
    return int(((places >= 0) & (places <= last) & (places % spread == 0)).sum())


def moved(module: Module) -> int:
    """Returns the bytes that a device reads from its main memory and writes to it, in a run.

    What a fusion takes and gives counts, and not what is made and used inside; of an array that is only
    looked at in part, or written in part, the part.
    """
    return sum(
        times * _moved(module, computation, one) for computation, one, times in module.executed()
    )


def _moved(module: Module, computation: Computation, one: Instruction) -> int:
    if one.op in _FREE or one.op.removesuffix('-start') in COLLECTIVES:
        return 0
    if one.op == 'custom-call' and any(f'"{name}"' in one.text for name in _FREE_CALLS):
        return 0
    operands = [_slow(operand.arrays) for operand in computation.operands(one)]
    written = _slow(one.arrays)
    if one.op == 'slice-start':
        source, part = one.arrays[:2]
        return part.bytes * ((not source.fast) + (not part.fast))
    if one.op == 'copy-start':
        return 2 * min(_slow(one.arrays[:1]), _slow(one.arrays[1:2])) or max(
            _slow(one.arrays[:1]), _slow(one.arrays[1:2])
        )
    if one.op in ('dynamic-slice', 'gather', 'slice'):
        return 2 * written
    if one.op in ('dynamic-update-slice', 'scatter'):
        return 2 * operands[1 if one.op == 'dynamic-update-slice' else -1]
    if one.op == 'fusion':
        return _moved_by_fusion(module, one, operands)
    return sum(operands) + written


def _moved_by_fusion(module: Module, one: Instruction, operands: Sequence[int]) -> int:
    inside = module.computations[one.called['calls'][0]]
    read = sum(
        _read(module, inside, parameter, whole)
        for parameter, whole in zip(inside.parameters, operands, strict=True)
        if whole
    )
    root = inside.instructions[inside.root]
    roots = inside.operands(root) if root.op == 'tuple' else [root] * len(one.arrays)
    return read + sum(
        _written(module, inside, made, array.bytes)
        for made, array in zip(roots, one.arrays, strict=True)
        if not array.fast
    )


def _read(module: Module, inside: Computation, given: Instruction, whole: int) -> int:
    """Returns how many of the `whole` bytes of an array of a fusion are read, by what they are used for."""
    if given.name == inside.root:
        return whole
    total = 0
    for user in inside.instructions.values():
        for place, name in enumerate(user.operands):
            if name == given.name:
                total += _read_by(module, inside, user, place, whole)
    return min(whole, total)


def _read_by(module: Module, inside: Computation, user: Instruction, place: int, whole: int) -> int:
    if user.op in ('bitcast', 'copy'):
        return _read(module, inside, user, whole)
    if user.op in ('dynamic-slice', 'slice', 'gather') and place == 0:
        return _all(user.arrays)
    if user.op == 'dynamic-update-slice' and place == 0:
        return 0  # It is written in its place.
    if user.op == 'fusion':
        called = module.computations[user.called['calls'][0]]
        return _read(module, called, called.parameters[place], whole)
    return whole


def _written(module: Module, inside: Computation, made: Instruction, whole: int) -> int:
    """Returns how many bytes of a result of a fusion are written: of an update the part."""
    while made.op in ('bitcast', 'copy'):
        [made] = inside.operands(made)
    if made.op == 'dynamic-update-slice':
        return min(whole, _all(inside.operands(made)[1].arrays))
    if made.op == 'fusion' and isinstance(made.shape, Array):
        called = module.computations[made.called['calls'][0]]
        return _written(module, called, called.instructions[called.root], whole)
    return whole


def _slow(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.fast)


def _all(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)


def collectives(module: Module, mesh: dict[str, int]) -> list[Collective]:
    """Returns the collectives of a run, those that send most first.

    Args:
        module: the program.
        mesh: the sizes of the mesh's axes, by name, whose devices are numbered in order.
    """
    found: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for computation, one, times in module.executed(inside=True):
        kind = one.op.removesuffix('-start')
        if kind not in COLLECTIVES:
            continue
        members = groups(one, math.prod(mesh.values()))
        axes = axes_of(members, mesh)
        size = _collective_bytes(computation, one, kind)
        total = found[kind, axes, len(members[0]), module.source(one)]
        total[0] += times
        total[1] += times * size
    made = [
        Collective(kind, axes, n, count, size, size * _SENT[kind](n), source)
        for (kind, axes, n, source), (count, size) in found.items()
    ]
    return sorted(made, key=lambda one: -one.sent)


# Of a collective of n devices: what each sends, as a part of the bytes.
_SENT = {
    'all-gather': lambda n: (n - 1) / n,
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'ragged-all-to-all': lambda n: (n - 1) / n,
    'collective-broadcast': lambda n: 1.0,
    'collective-permute': lambda n: 1.0,
}


def _collective_bytes(computation: Computation, one: Instruction, kind: str) -> int:
    given = sum(_data(array) for operand in computation.operands(one) for array in operand.arrays)
    if kind in ('all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute'):
        return given
    shape = one.shape
    if one.op.endswith('-start') and isinstance(shape, tuple) and len(shape) > 1:
        shape = shape[1]  # (what comes in, what comes out, ...)
    return sum(_data(array) for array in leaves(shape))


def _data(array: Array) -> int:
    """Bytes without padding; of a number of less than 8 bits, a byte."""
    bits = re.search(r'\d+', array.dtype)
    return array.count * max(8, int(bits[0]) if bits else 8) // 8


def groups(one: Instruction, devices: int) -> np.ndarray:
    """Returns the devices of each group of a collective, int `[groups, n]`."""
    if found := re.search(r'source_target_pairs=\{(\{.*?\})\}', one.text):
        return np.array(
            [[int(n) for n in re.findall(r'\d+', pair)] for pair in found[1].split('},')]
        )
    if found := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', one.text):
        shape, source, order = (
            [int(n) for n in part.split(',')] if part else None for part in found.groups()
        )
        return np.arange(math.prod(source)).reshape(source).transpose(order).reshape(shape)
    if found := re.search(r'replica_groups=mesh\[([^\]]*)\](.*?) ?\{([^}]*)\}', one.text):
        return _mesh_groups(*found.groups())
    if found := re.search(r'replica_groups=\{(\{.*?\})\}', one.text):
        return np.array(
            [[int(n) for n in re.findall(r'\d+', group)] for group in found[1].split('},')]
        )
    return np.arange(devices)[None]


def _mesh_groups(axes: str, order: str, along: str) -> np.ndarray:
    """Of `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`; `{'a':(1)2}` are 2 of the 4, 1 before."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values()))
    if found := re.search(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', order):
        source, turn = (
            [int(n) for n in part.split(',')] if part else None for part in found.groups()
        )
        numbers = numbers.reshape(source).transpose(turn).reshape(-1)
    elif found := re.findall(r'\d+', order):
        numbers = np.array([int(n) for n in found])
    shape, names = [], []
    parts = {
        name: (int(before or 1), int(size)) if size else (1, sizes[name])
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)
    }
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        shape += [before, part, size // before // part]
        names += [None, name if name in parts else None, None]
    grid = numbers.reshape(shape)
    taken = [names.index(name) for name in parts]
    others = [axis for axis in range(grid.ndim) if axis not in taken]
    n = math.prod(shape[axis] for axis in taken)
    return grid.transpose(others + taken).reshape(-1, n)


def axes_of(members: np.ndarray, mesh: dict[str, int]) -> tuple[str, ...]:
    """Returns the axes of a mesh that the devices of a group differ in."""
    if members.max(initial=0) >= math.prod(mesh.values()):
        return ()
    places = np.stack(np.unravel_index(members, tuple(mesh.values())), axis=-1)
    differs = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(name for name, there in zip(mesh, differs, strict=True) if there)


def unknown_calls(module: Module) -> Iterator[str]:
    """Yields the targets of custom calls, which may hold FLOPs that are not counted."""
    for _, one, _ in module.executed(inside=True):
        if one.op == 'custom-call' and (
            found := re.search(r'custom_call_target="([^"]*)"', one.text)
        ):
            yield found[1]
