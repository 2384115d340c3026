"""Which arrays of a compiled program are in memory when it needs the most, and from which lines they come.

XLA plans a program's memory, and says the total; here it is followed which arrays that is made of. An
instruction whose operand dies with it may take that one's place, as XLA lets it where sizes agree.
"""

import dataclasses
from collections import defaultdict
from typing import Any

from lm.hlo import Array, Computation, Instruction, Module, Shape

# The result is the operand, or parts of it.
_SAME = {
    'bitcast',
    'while',
    'optimization-barrier',
    'copy-done',
    'slice-done',
    'async-done',
    'add-dependency',
}
# These only move numbers, or round them.
_MOVES = {'bitcast', 'copy', 'convert', 'reshape', 'transpose', 'copy-start'}
_NOTHING = {'parameter', 'constant', 'after-all', 'partition-id', 'replica-id'}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array in main memory.

    Attributes:
        bytes: its size, with padding.
        shape: such as `f32[8,128]`.
        source: `FILE:LINE` of lm.
        op_name: what JAX was doing.
    """

    bytes: int
    shape: str
    source: str
    op_name: str


def peak(module: Module) -> list[Buffer]:
    """Returns the temporary arrays that are there at once when these are the most bytes, the largest first.

    What the program is given and what it returns is not among them.
    """
    live = _Peak(module).of(module.entry)
    return sorted(live, key=lambda one: -one.bytes)


class _Peak:
    def __init__(self, module: Module) -> None:
        self.module = module
        self.known: dict[str, list[Buffer]] = {}

    def of(self, name: str) -> list[Buffer]:
        """Returns the arrays of a computation at its peak; not its parameters, nor its result."""
        if name not in self.known:
            self.known[name] = self._of(self.module.computations[name])
        return self.known[name]

    def _of(self, computation: Computation) -> list[Buffer]:
        values, buffers, ends = self._values(computation)
        kept = set(_ids(values[computation.root]))
        born, dying = defaultdict(list), defaultdict(list)
        for number, (start, _) in buffers.items():
            if number not in kept:
                born[start].append(number)
                dying[ends[number]].append(number)
        live: dict[int, Buffer] = {}
        most, best = -1, []
        total = 0
        for step, one in enumerate(computation.instructions.values()):
            for number in born[step]:
                live[number] = buffers[number][1]
                total += live[number].bytes
            inner = self._inner(one)
            size = total + sum(buffer.bytes for buffer in inner)
            if size > most:
                most, best = size, [*live.values(), *inner]
            for number in dying[step]:
                total -= live.pop(number).bytes
        return best

    def _inner(self, one: Instruction) -> list[Buffer]:
        """Returns the arrays of what an instruction calls, of that which needs most."""
        called = [
            name
            for key, names in one.called.items()
            if key in ('body', 'condition', 'branch_computations') or one.op == 'call'
            for name in names
        ]
        found = [self.of(name) for name in called]
        return max(found, key=lambda live: sum(buffer.bytes for buffer in live), default=[])

    def _values(self, computation: Computation) -> tuple[dict, dict, dict[int, int]]:
        """Returns of each instruction the arrays of its result, by number; each array; and its last use."""
        lasts = _last_uses(computation)
        values: dict[str, Any] = {}
        buffers: dict[int, tuple[int, Buffer]] = {}
        ends: dict[int, int] = {}
        for step, one in enumerate(computation.instructions.values()):
            operands = [values[name] for name in one.operands]
            value = self._value(one, operands, buffers, ends, step)
            values[one.name] = value
            for number in _ids(value):
                ends[number] = max(ends.get(number, step), lasts.get(one.name, step))
        return values, buffers, ends

    def _value(self, one: Instruction, operands: list, buffers: dict, ends: dict, step: int) -> Any:
        if one.op in _NOTHING:
            return _blank(one.shape)
        if one.op == 'tuple':
            return tuple(operands)
        if one.op == 'get-tuple-element':
            found = operands[0]
            return found[_index(one)] if isinstance(found, tuple) else found
        if one.op == 'while':
            self._name(one, operands[0], buffers)
        if one.op in _SAME or one.op.endswith('-done'):
            return _fitted(one, operands[0])
        free = [
            number
            for operand in operands
            for number in _ids(operand)
            if ends[number] <= step and number in buffers
        ]
        return self._made(one, one.shape, free, buffers, step)

    def _made(
        self, one: Instruction, shape: Shape, free: list[int], buffers: dict, step: int
    ) -> Any:
        if not isinstance(shape, Array):
            if one.op.endswith('-start') and len(shape) > 1:
                # What comes in is only named here; what comes out is new.
                return (
                    _blank(shape[0]),
                    *(self._made(one, p, [], buffers, step) for p in shape[1:]),
                )
            return tuple(self._made(one, part, free, buffers, step) for part in shape)
        if shape.fast or not shape.bytes:
            return None
        for number in free:
            if buffers[number][1].bytes == shape.bytes:
                free.remove(number)
                return number
        number = len(buffers)
        source = self.module.source(one)
        buffers[number] = (step, Buffer(shape.bytes, shape.text, source, one.op_name))
        return number

    def _name(self, loop: Instruction, carried: Any, buffers: dict) -> None:
        """Says of arrays that a loop fills what it writes into them, in the place of what they began as."""
        body = self.module.computations[loop.called['body'][0]]
        made = body.instructions[body.root].operands
        for value, name in zip(carried, made, strict=False):
            if not isinstance(value, int):
                continue
            start, buffer = buffers[value]
            writer = self._writer(body, name)
            if writer and (source := self.module.source(writer)):
                found = dataclasses.replace(buffer, source=source, op_name=writer.op_name)
                buffers[value] = start, found

    def _writer(self, computation: Computation, name: str) -> Instruction | None:
        """Returns what made the numbers that are written into a part of an array; None of a whole one."""
        callers: list[tuple[Computation, Instruction]] = []
        written = False
        while True:
            one = computation.instructions[name]
            part = None
            if one.op == 'get-tuple-element' and not written:
                part, one = _index(one), computation.instructions[one.operands[0]]
                if one.op != 'fusion':
                    return None
            if one.op == 'fusion' and not written:
                callers.append((computation, one))
                computation = self.module.computations[one.called['calls'][0]]
                root = computation.instructions[computation.root]
                name = root.name if part is None else root.operands[part]
            elif one.op == 'dynamic-update-slice' and not written:
                written, name = True, one.operands[1]
            elif one.op == 'parameter' and callers:
                computation, caller = callers.pop()
                name = caller.operands[int(one.inner)]
            elif one.op in _MOVES or one.op.endswith('-done'):
                name = one.operands[0]
            else:
                return one if written else None


def _last_uses(computation: Computation) -> dict[str, int]:
    """Returns the last step that reads each instruction's result, by name."""
    return {
        name: step
        for step, one in enumerate(computation.instructions.values())
        for name in one.operands
    }


def _fitted(one: Instruction, value: Any) -> Any:
    """Returns the value of an instruction that has its operand's memory."""
    if one.op.endswith('-done') and isinstance(value, tuple):
        return value[0 if one.op == 'copy-done' and value[1] is None else min(1, len(value) - 1)]
    return value


def _index(one: Instruction) -> int:
    return int(one.text.partition('index=')[2].split(',')[0].split(' ')[0])


def _blank(shape: Shape) -> Any:
    return None if isinstance(shape, Array) else tuple(map(_blank, shape))


def _ids(value: Any) -> list[int]:
    if isinstance(value, tuple):
        return [number for part in value for number in _ids(part)]
    return [] if value is None else [value]
