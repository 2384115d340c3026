"""Masks written as text: `parse('causal & window(256)') == causal & window(256)`.

The text is read by Python's own parser and must be made of names of a table, calls with integers, `&`,
`|`, `~` and parentheses. Nothing is ever evaluated. Kinds of `lm.attention.linear` are written alike, but
stand alone: `gated_linear(rank=16)`.
"""

import ast
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lm.attention import linear
from lm.attention.masks import MASKS, PRESETS, Heads, Mask, causal, full, heads, prefix
from lm.attention.nsa import NSA
from lm.attention.table import NOTHING, replace
from lm.attention.topk import TopK
from lm.errors import InputError, nearest

NAMES: dict[str, Any] = {
    **MASKS,
    **PRESETS,
    **linear.KINDS,
    'heads': heads,
    'topk': TopK,
    'nsa': NSA,
}


class _Fault(Exception):
    """A message, and the part of the text that it is about."""

    def __init__(self, message: str, node: ast.AST) -> None:
        super().__init__(message)
        self.start, self.end = node.col_offset, node.end_col_offset


def parse(
    text: str, place: str = 'config.model.attention', names: Mapping[str, Any] = NAMES
) -> Any:
    """Returns the mask that a text describes, or the tuple of masks of a preset that is a pattern.

    Args:
        text: such as `'causal & window(256)'`.
        place: where it was given, for the message.
        names: what may be named. Those that are not masks cannot be combined.

    Raises:
        InputError: three lines: what is wrong, the text, and carets under the fault.
    """
    text = text.strip()
    try:
        tree = ast.parse(text, mode='eval')
        return _build(tree.body, names)
    except SyntaxError as error:
        start = max((error.offset or 1) - 1, 0)
        # What Python expects here is seldom what is wanted here.
        message, end = 'this is not an expression of masks', start + 1
    except _Fault as fault:
        # Columns of ast count bytes.
        start, end = (len(text.encode()[:n].decode()) for n in (fault.start, fault.end))
        message = str(fault)
    message += '' if message.endswith(('.', '?')) else '.'
    carets = ' ' * start + '^' * max(end - start, 1)
    raise InputError(f"{place} = '{text}': {message}\n  {text}\n  {carets}")


def as_mask(mask: Any) -> Mask | tuple[Mask, ...]:
    """Returns the mask, or the pattern of masks, that is given, or that a text or several describe.

    Raises:
        InputError: as `parse`, or it is a kind of attention that has no mask.
    """
    made = parse(mask, 'mask') if isinstance(mask, str) else mask
    if isinstance(made, tuple):
        each = (as_mask(part) for part in made)
        return tuple(m for part in each for m in (part if isinstance(part, tuple) else (part,)))
    if not isinstance(made, Mask):
        raise InputError(
            f"mask = '{mask}' has no mask: what it sees depends on the text, or is all before."
        )
    return made


def causal_form(kind: Any) -> str:
    """Returns the text of what sees the same earlier tokens as `kind`, and no later ones."""
    match kind:
        case Heads(masks):
            return f'heads({", ".join(map(causal_form, masks))})'
        case Mask():
            return str(kind if kind.is_causal else causal if kind == full else causal & kind)
    return str(dataclasses.replace(kind, causal=1))


def without_prefix(kind: Any) -> Any:
    """Returns what sees the same, but for a prefix's tokens that see each other."""
    if isinstance(kind, Heads):
        return Heads(tuple(map(without_prefix, kind.masks)))
    return replace(kind, prefix, NOTHING) if isinstance(kind, Mask) else kind


def parse_pattern(texts: Sequence[str], place: str = 'config.model.attention') -> tuple[Any, ...]:
    """Returns what the layers of a model go through in turn: one entry a text, two for `gpt3`."""
    made = (parse(text, place) for text in texts)
    return tuple(
        kind for entry in made for kind in (entry if isinstance(entry, tuple) else (entry,))
    )


def _build(node: ast.AST, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.BinOp(left, ast.BitAnd() | ast.BitOr() as operator, right):
            a, b = (_mask(part, names) for part in (left, right))
            return a & b if isinstance(operator, ast.BitAnd) else a | b
        case ast.UnaryOp(ast.Invert(), operand):
            return ~_mask(operand, names)
        case ast.Name(name):
            made = _named(node, name, names)
            return _call(node, made, [], {}) if callable(made) else made
        case ast.Call(ast.Name(name) as function, arguments, keywords):
            made = _named(function, name, names)
            if not callable(made):
                raise _Fault(f"'{name}' takes no arguments", node)
            if made is heads:
                if keywords or not arguments:
                    raise _Fault('write one mask for each part of the heads', node)
                return heads(*(_mask(part, names) for part in arguments))
            named = {k.arg: _number(k.value) for k in keywords}
            return _call(node, made, [_number(part) for part in arguments], named)
        case ast.BoolOp():
            raise _Fault("write '&' for 'and' and '|' for 'or'", node)
        case ast.UnaryOp(ast.Not()):
            raise _Fault("write '~' for 'not'", node)
    raise _Fault('only names, numbers in calls, &, | and ~ have a meaning here', node)


def _mask(node: ast.AST, names: Mapping[str, Any]) -> Mask:
    made = _build(node, names)
    if not isinstance(made, Mask) or isinstance(made, Heads):
        raise _Fault('this is no mask that can be combined; it stands alone', node)
    return made


def _named(node: ast.AST, name: str, names: Mapping[str, Any]) -> Any:
    if name not in names:
        raise _Fault(f"'{name}' is not known.{nearest(name, names)}", node)
    return names[name]


def _number(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    raise _Fault('only integers are arguments', node)


def _call(node: ast.AST, function: Any, arguments: list[int], named: dict[str, int]) -> Any:
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*arguments, **named)
    except TypeError as error:
        name = node.func.id if isinstance(node, ast.Call) else node.id
        wanted = ', '.join(
            p.name if p.default is p.empty else f'{p.name}={p.default}'
            for p in signature.parameters.values()
        )
        raise _Fault(f'write {name}({wanted}): {error}', node) from None
    try:
        return function(*bound.args, **bound.kwargs)
    except InputError as error:
        raise _Fault(str(error), node) from None
