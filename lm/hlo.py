"""What a compiled program says of itself: its text (HLO) as instructions, and how often each one runs.

XLA's own cost analysis counts the body of a loop once; here an instruction of a body counts as often as the
loop goes round. The text is that of `jax.stages.Compiled.as_text()`, of one device, in the order in which
the instructions run. The format: https://openxla.org/xla/operation_semantics.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Of array types whose names do not end in their bits.
_BITS = {'pred': 8, 'token': 0, 'opaque': 0, 'c64': 64, 'c128': 128, 'e8m0fnu': 8}
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = ')
_CALLED = re.compile(r'(calls|body|condition|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)')
_NAME = re.compile(r'%([\w.\-]+)')


class Array(NamedTuple):
    """An array in memory.

    Attributes:
        dtype: XLA's name, such as bf16.
        sizes: of its dimensions.
        bytes: that it takes, with the padding of its tiles.
        fast: it lies in memory on the chip (VMEM), or is a flag there, and takes none of the main memory.
    """

    dtype: str
    sizes: tuple[int, ...]
    bytes: int
    fast: bool

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.sizes)

    @property
    def text(self) -> str:
        """Such as `bf16[8,128]`."""
        return f'{self.dtype}[{",".join(map(str, self.sizes))}]'


# An array, or the parts of a tuple.
Shape = Array | tuple['Shape', ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: unique in the program.
        op: such as dot, fusion, while, all-gather-start.
        shape: of the result.
        operands: names of instructions of the same computation.
        called: names of computations, by `calls`, `body`, `condition`, `to_apply`, `branch_computations`.
        text: what stands after the operands.
        inner: what stands between the brackets of the operands, such as a constant's value.
    """

    name: str
    op: str
    shape: Shape
    operands: tuple[str, ...]
    called: Mapping[str, tuple[str, ...]]
    text: str
    inner: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result."""
        return tuple(leaves(self.shape))

    @property
    def op_name(self) -> str:
        """What JAX was doing, such as `jit(step)/jvp(Decoder)/dot_general`; '' where it does not say."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program: instructions by name, in order, and the name of its root."""

    instructions: Mapping[str, Instruction]
    root: str

    def operands(self, one: Instruction) -> list[Instruction]:
        """Returns the instructions that made the operands."""
        return [self.instructions[name] for name in one.operands]

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters, in the order of the caller's operands."""
        found = [one for one in self.instructions.values() if one.op == 'parameter']
        return sorted(found, key=lambda one: int(one.inner))


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        computations: by name.
        entry: the name of the one that runs.
        sources: by the number of a stack frame, `FILE:LINE` from the innermost frame to the outermost.
    """

    computations: Mapping[str, Computation]
    entry: str
    sources: Mapping[int, tuple[str, ...]]

    def source(self, one: Instruction, below: str = '/lm/') -> str:
        """Returns `FILE:LINE` of the code that an instruction is of; '' where it is not told.

        Args:
            one: the instruction.
            below: of its frames the innermost whose file has this in its path.
        """
        frame = re.search(r'stack_frame_id=(\d+)', one.text)
        frames = self.sources.get(int(frame[1]), ()) if frame else ()
        if not frames and (
            found := re.search(r'source_file="([^"]*)" source_line=(\d+)', one.text)
        ):
            frames = (f'{found[1]}:{found[2]}',)
        return next((line for line in frames if below in line), frames[0] if frames else '')

    def executed(self, inside: bool = False) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields each instruction that runs, with its computation and how often it runs.

        Args:
            inside: also what fusions and asynchronous calls hold, beside them.
        """
        yield from self._executed(self.entry, 1, inside)

    def _executed(self, name: str, times: int, inside: bool) -> Iterator:
        computation = self.computations[name]
        for one in computation.instructions.values():
            yield computation, one, times
            turns = trips(self, computation, one) if one.op == 'while' else 1
            for key, called in one.called.items():
                if key == 'to_apply' and one.op != 'call':
                    continue  # How two numbers become one, in a sum.
                if key == 'calls' and one.op == 'fusion' and not inside:
                    continue
                for each in called:
                    yield from self._executed(each, times * turns, inside)


def leaves(shape: Shape) -> Iterator[Array]:
    """Yields the arrays of a shape."""
    if isinstance(shape, Array):
        yield shape
    else:
        for part in shape:
            yield from leaves(part)


def parse(text: str) -> Module:
    """Returns the program of a text; raises ValueError where it is none."""
    computations, entry, instructions, root, name = {}, '', {}, '', ''
    for line in text.splitlines():
        if line.startswith(('ENTRY', '%')) and line.rstrip().endswith('{'):
            name = line.removeprefix('ENTRY ').lstrip('%').split(' ')[0].split('(')[0]
            entry = name if line.startswith('ENTRY') else entry
            instructions, root = {}, ''
        elif line.startswith('}') and name:
            computations[name] = Computation(instructions, root)
            name = ''
        elif name and (head := _INSTRUCTION.match(line)):
            instructions[head[2]] = _instruction(head[2], line[head.end() :])
            root = head[2] if head[1] else root
    if not entry:
        raise ValueError('this is not the text of a compiled program: it has no ENTRY.')
    return Module(computations, entry, _sources(text))


def _instruction(name: str, rest: str) -> Instruction:
    shape, end = _shape(rest, 0)
    op, _, rest = rest[end:].strip().partition('(')
    end = _closing(rest)
    inner, text = rest[:end], rest[end + 1 :]
    called = {key: tuple(re.findall(r'[\w.\-]+', found)) for key, found in _CALLED.findall(text)}
    return Instruction(name, op, shape, tuple(_NAME.findall(inner)), called, text, inner)


def _closing(text: str) -> int:
    """Returns where the bracket that was open is closed."""
    depth, quoted = 1, False
    for place, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character in '([{') - (character in ')]}')
            if depth == 0:
                return place
    return len(text)


def _shape(text: str, at: int) -> tuple[Shape, int]:
    """Returns the shape that stands at a place, and where it ends."""
    if text[at] != '(':
        found = _ARRAY.match(text, at)
        if not found:
            raise ValueError(f'no shape of an array: {text[at : at + 60]}')
        # A layout may hold braces only at its ends; brackets within are of tiles.
        return _array(*found.groups()), found.end()
    parts, at = [], at + 1
    while text[at] != ')':
        if text[at] in ', ':
            at += 1
        elif text.startswith('/*', at):
            at = text.index('*/', at) + 2
        else:
            part, at = _shape(text, at)
            parts.append(part)
    return tuple(parts), at + 1


@functools.lru_cache(maxsize=4096)
def _array(dtype: str, sizes: str, layout: str | None) -> Array:
    dims = tuple(int(size.removeprefix('<=')) for size in sizes.split(',') if size)
    numbers = re.search(r'(\d+)(?!.*\d)', dtype)
    bits = _BITS[dtype] if dtype in _BITS else int(re.search(r'\d+', dtype)[0]) if numbers else 8
    space = re.search(r'S\((\d+)\)', layout or '')
    # 5 is the memory of the host.
    return Array(dtype, dims, _padded(dims, layout or '') * bits // 8, bool(space))


def _padded(sizes: tuple[int, ...], layout: str) -> int:
    """Returns the numbers that an array has room for: a TPU's lie in whole tiles, `{1,0:T(8,128)}`."""
    tile = re.search(r':T\(([\d,]+)\)', layout)
    if not tile or not sizes:
        return math.prod(sizes)
    order = [int(n) for n in re.match(r'\{([\d,]*)', layout)[1].split(',') if n]
    major = [sizes[axis] for axis in reversed(order)]
    parts = [int(n) for n in tile[1].split(',')]
    for back, part in enumerate(reversed(parts), 1):
        if back <= len(major):
            major[-back] = -(-major[-back] // part) * part
    return math.prod(major)


def _sources(text: str) -> dict[int, tuple[str, ...]]:
    """Returns the lines of each stack frame, from the tables at the head of a text."""
    tables, table = {}, {}
    for line in text.splitlines()[1:]:
        if line.startswith(('%', 'ENTRY')):
            break
        if re.fullmatch(r'(FileNames|FunctionNames|FileLocations|StackFrames)', line):
            table = tables.setdefault(line, {})
        elif found := re.match(r'(\d+) (.*)', line):
            table[int(found[1])] = found[2]
    files, places = tables.get('FileNames', {}), {}
    for number, value in tables.get('FileLocations', {}).items():
        fields = {key: int(n) for key, n in re.findall(r'(\w+)=(\d+)', value)}
        file = files.get(fields.get('file_name_id', 0), '""').strip('"')
        places[number] = f'{file}:{fields.get("line", 0)}'
    frames = {}
    for number, value in tables.get('StackFrames', {}).items():
        fields = {key: int(n) for key, n in re.findall(r'(\w+)=(\d+)', value)}
        frames[number] = (
            places.get(fields['file_location_id'], ''),
            fields.get('parent_frame_id', 0),
        )
    return {number: _chain(frames, number) for number in frames}


def _chain(frames: Mapping[int, tuple[str, int]], number: int) -> tuple[str, ...]:
    # A frame's parent is written as its number, or as one more.
    shift = 1 if frames.get(1, ('', 0))[1] == 1 else 0
    found = []
    while number in frames and len(found) < 100:
        place, parent = frames[number]
        found.append(place)
        number = parent - shift
    return tuple(found)


def trips(module: Module, computation: Computation, loop: Instruction) -> int:
    """Returns how often a loop goes round: what XLA says, or what its condition compares with.

    A loop whose number cannot be told counts once.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(found[1])
    condition = module.computations[loop.called['condition'][0]]
    compare = condition.instructions[condition.root]
    if compare.op != 'compare' or 'direction=LT' not in compare.text:
        return 1
    sides = condition.operands(compare)
    if sides[1].op != 'constant' or sides[0].op != 'get-tuple-element':
        return 1
    place = int(re.search(r'index=(\d+)', sides[0].text)[1])
    first, step = _start(computation, loop, place), _step(module, loop, place)
    return max(0, -(-(int(sides[1].inner) - first) // step))


def _start(computation: Computation, loop: Instruction, place: int) -> int:
    """Returns what a loop's counter begins with, 0 where it is not a constant."""
    carried = computation.instructions[loop.operands[0]]
    if carried.op == 'tuple':
        first = computation.instructions[carried.operands[place]]
        while first.op in ('copy', 'bitcast', 'copy-start', 'copy-done', 'get-tuple-element'):
            first = computation.instructions[first.operands[0]]
        if first.op == 'constant':
            return int(first.inner)
    return 0


def _step(module: Module, loop: Instruction, place: int) -> int:
    """Returns by how much a loop's counter grows, 1 where it is not a constant."""
    body = module.computations[loop.called['body'][0]]
    root = body.instructions[body.root]
    if root.op == 'tuple':
        last = body.instructions[root.operands[place]]
        if last.op == 'add':
            for side in body.operands(last):
                if side.op == 'constant':
                    return max(1, int(side.inner))
    return 1
