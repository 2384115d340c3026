"""Where the time of traced steps went: of the devices by kind of operation, of the loop by its parts.

Read from the trace by `jax.profiler.ProfileData`. At each moment a device's time belongs to what it
computes, or else to what it copies, or else to collectives, or else to nothing (idle): what runs beside a
computation is hidden by it, and costs no time. So the shares of a device add up to the whole.

The form of traces was seen on CPU; those of GPUs (streams) and TPUs (a line `XLA Ops`) are read as their
makers describe them, and were not tried.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm import hlo

# Category -> what it is, and its rank: of what goes on at once the lowest has the time.
CATEGORIES = {
    'matmul': ('matrix products', 0),
    'attention': ('attention: scores, softmax, sums of values', 0),
    'other': ('element by element, reductions, the rest', 0),
    'copy': ('copies and other layouts', 1),
    'collective': ('collectives that nothing hides', 2),
    'control': ('loops and calls, themselves', 3),
    'idle': ('idle', 4),
}
# Of the loop, in traces: annotation -> what it is.
HOST = {
    'metrics': "waiting for a step's metrics: the device is at work",
    'dispatch': 'dispatching steps',
    'data_wait': 'taking batches',
    'log': 'logging',
    'evaluation': 'evaluation',
    'checkpoint': 'checkpoints',
    'profile': 'writing the profile',
    'python': 'the rest of the loop',
}
STEP = 'step'

_COLLECTIVES = (
    *('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all'),
    *('collective-broadcast', 'ragged-all-to-all', 'send', 'recv', 'partition-id'),
)
_PRODUCTS = ('dot', 'convolution', 'ragged-dot', 'scaled-dot')
_CONTROL = ('while', 'call', 'conditional', 'async-start', 'async-done', 'async-update')
_COPIES = {
    *(
        'copy',
        'copy-start',
        'copy-done',
        'transpose',
        'bitcast',
        'reshape',
        'slice',
        'concatenate',
        'pad',
    ),
    *(
        'broadcast',
        'dynamic-slice',
        'dynamic-update-slice',
        'parameter',
        'constant',
        'tuple',
        'iota',
    ),
    *('get-tuple-element', 'bitcast-convert', 'opt-barrier'),
}
# An attention module's own operations, and not those of the products with parameters inside it.
_ATTENTION = re.compile(r'(?:^|/)(?:\w+_)?attention/(?!(?:query|key|value|out|qkv|gate|decay)\w*/)')
_LIBRARY = re.compile(r'gemm|matmul|cublas|cudnn\$conv|onednn', re.IGNORECASE)
_FLASH = re.compile(r'fmha|attention|splash', re.IGNORECASE)

_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class _Operation(NamedTuple):
    opcode: str
    called: str
    path: str
    target: str


def categories(text: str) -> tuple[str, dict[str, str]]:
    """Returns a compiled program's name, and the category of each of its operations by name.

    Args:
        text: its text, as `compiled.as_text()` has it.
    """
    computations = {
        name: {one.name: _operation(one) for one in computation.instructions.values()}
        for name, computation in hlo.parse(text).computations.items()
    }
    module = re.search(r'^HloModule ([\w.\-$]+)', text, re.MULTILINE)
    return module[1] if module else '', {
        name: _category(operation, computations)
        for operations in computations.values()
        for name, operation in operations.items()
    }


def _operation(one: hlo.Instruction) -> _Operation:
    called = (one.called.get('calls') or one.called.get('to_apply') or ('',))[0]
    target = _TARGET.search(one.text)
    return _Operation(one.op, called, one.op_name, target[1] if target else '')


def _category(operation: _Operation, computations: Mapping[str, Mapping[str, _Operation]]) -> str:
    opcode, path = operation.opcode, operation.path
    if _is_collective(opcode):
        return 'collective'
    if opcode in _CONTROL:
        return 'control'
    parts = [operation]
    if opcode == 'fusion':
        parts = _inside(operation.called, computations)
    if any(_is_collective(part.opcode) for part in parts):
        return 'collective'
    products = [part for part in parts if _is_product(part)]
    if any(_ATTENTION.search(part.path or path) for part in products):
        return 'attention'
    if products:
        return 'matmul'
    if (
        opcode == 'custom-call'
        and _FLASH.search(operation.target + path)
        or _ATTENTION.search(path)
    ):
        return 'attention'
    return 'copy' if all(part.opcode in _COPIES for part in parts) else 'other'


def _inside(name: str, computations: Mapping[str, Mapping[str, _Operation]]) -> list[_Operation]:
    """The operations of a fused computation, and of those that it calls."""
    found = []
    for part in computations.get(name, {}).values():
        found.append(part)
        if part.opcode in ('fusion', 'call'):
            found += _inside(part.called, computations)
    return found


def _is_collective(opcode: str) -> bool:
    return re.sub(r'-(start|done)$', '', opcode) in _COLLECTIVES


def _is_product(part: _Operation) -> bool:
    return part.opcode in _PRODUCTS or (
        part.opcode == 'custom-call' and bool(_LIBRARY.search(part.target))
    )


def by_name(name: str) -> str:
    """Returns the category of an operation of which only its name is known: `dot.3`, `MemcpyD2D`."""
    if 'memcpy' in name.lower():
        return 'copy'
    opcode = re.sub(r'[.\d]+$', '', name.lstrip('%').split(' ')[0])
    return _category(_Operation(opcode, '', '', ''), {})


class Event(NamedTuple):
    """What a device does, from one nanosecond to another."""

    start: float
    end: float
    category: str


def shares(events: Iterable[Event], start: float, end: float) -> dict[str, float]:
    """Returns nanoseconds by category between two moments; with `idle` they add up to all of it.

    >>> shares([Event(0, 6, 'matmul'), Event(4, 9, 'collective')], 0, 10)
    {'matmul': 6, 'collective': 3, 'idle': 1}
    """
    edges = []
    for event in events:
        if min(event.end, end) > max(event.start, start):
            edges += [(max(event.start, start), 1, event.category)]
            edges += [(min(event.end, end), -1, event.category)]
    active: dict[str, int] = defaultdict(int)
    found: dict[str, float] = defaultdict(int)
    at = start
    for moment, change, category in [*sorted(edges), (end, 0, 'idle')]:
        if moment > at:
            for one, part in _holders(active).items():
                found[one] += part * (moment - at)
        active[category] += change
        at = moment
    return {category: found[category] for category in CATEGORIES if found[category]}


def _holders(active: Mapping[str, int]) -> dict[str, float]:
    """Whose the time is, of what goes on at once, and in which parts."""
    going = {category: count for category, count in active.items() if count}
    if not going:
        return {'idle': 1}
    rank = min(CATEGORIES[category][1] for category in going)
    first = {c: count for c, count in going.items() if CATEGORIES[c][1] == rank}
    total = sum(first.values())
    return {category: count / total if total > count else 1 for category, count in first.items()}


def table(session: Path, operations: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    """Returns where the time of a trace's steps went, or None if it has none.

    Args:
        session: a folder with a `*.xplane.pb`.
        operations: by program, the category of each operation.

    Returns:
        `steps`, the first and the last; `seconds`, from the dispatch of the first to the metrics of the
        last; `devices`; `device`, the part of the time in each category, the mean over the devices; `host`,
        the part in each of `HOST`; `of`, the name of the host whose trace it is: of several the last one.
    """
    from jax.profiler import ProfileData

    file = max(session.glob('*.xplane.pb'), default=None)
    if file is None:
        return None
    host: list[tuple[str, float, float, Any]] = []
    devices: dict[str, list[Event]] = defaultdict(list)
    for plane in ProfileData.from_file(str(file)).planes:
        lines = [*plane.lines]
        on_device = plane.name.startswith('/device:')
        if on_device:  # A TPU's other lines, and a GPU's, say the same again.
            lines = [line for line in lines if line.name == 'XLA Ops'] or [
                line for line in lines if line.name.startswith('Stream')
            ]
        for line in lines:
            for event in line.events:
                stats = dict(event.stats)
                moments = event.start_ns, event.start_ns + event.duration_ns
                if on_device or 'hlo_op' in stats:
                    name = stats.get('hlo_op') or event.name
                    known = operations.get(str(stats.get('hlo_module', '')), {})
                    device = f'{plane.name} {stats.get("device_ordinal", "")}'
                    devices[device].append(Event(*moments, known.get(name) or by_name(name)))
                elif event.name in HOST or event.name == STEP:
                    host.append((event.name, *moments, stats.get('step_num')))
    steps = [one for one in host if one[0] == STEP]
    if not steps:
        return None
    start = min(one[1] for one in steps)
    end = max(one[2] for one in host if one[0] in (STEP, 'metrics'))
    return {
        'steps': [min(int(one[3]) for one in steps), max(int(one[3]) for one in steps)],
        'seconds': (end - start) / 1e9,
        'devices': len(devices),
        'device': _mean([shares(events, start, end) for events in devices.values()], end - start),
        'host': _host(host, start, end),
        'of': file.name.removesuffix('.xplane.pb'),
    }


def _mean(found: list[dict[str, float]], whole: float) -> dict[str, float]:
    return {
        category: sum(one.get(category, 0) for one in found) / len(found) / whole
        for category in CATEGORIES
        if any(category in one for one in found)
    }


def _host(
    events: list[tuple[str, float, float, Any]], start: float, end: float
) -> dict[str, float]:
    """The parts of the loop's time; they follow each other, and none is inside of another."""
    found: dict[str, float] = defaultdict(float)
    for name, begin, stop, _ in events:
        found['dispatch' if name == STEP else name] += max(0.0, min(stop, end) - max(begin, start))
    found['python'] = max(0.0, end - start - sum(found.values()))
    return {name: found[name] / (end - start) for name in HOST if found[name]}


def read_operations(path: Path) -> dict[str, dict[str, str]]:
    """Returns the categories that were kept beside a trace; {} where there are none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
