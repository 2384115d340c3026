"""The documentation that comes with Python: about 2 MB of English prose that every machine has.

One document a topic of `pydoc_data` (what `help('for')` shows) and one a module of the standard
library, made of its docstrings, each under its signature. The text is that of the Python that runs, so
its numbers compare between machines with the same Python version only.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lm.errors import lookup

# Goes up when the text made from the same files changes.
VERSION = 1

# Folders of the library that hold no documentation: tests, programs, tables, other people's packages.
_LEFT_OUT = {
    *('test', 'tests', 'idle_test', 'idlelib', 'turtledemo', 'lib2to3', 'site-packages'),
    *('dist-packages', 'encodings', 'ensurepip', 'pydoc_data', 'lib-dynload', '__pycache__'),
    *('__phello__', '_vendor'),
}
# Lines of nothing but one mark repeated: underlined titles, boxes, rules.
_RULE = re.compile(r'^[ \t]*([=*~^"#_-])\1{2,}[ \t]*\n', re.MULTILINE)
_QUOTES = str.maketrans('\u2018\u2019\u201c\u201d', '\'\'""')
_BLANK = re.compile(r'\n{3,}')

# Share of the documents in each split, in twentieths of the hash of their name.
SPLITS = {'': range(20), 'train': range(2, 20), 'valid': range(0, 1), 'test': range(1, 2)}


def documents(split: str) -> Iterator[str]:
    """Yields the documents of a split, '' for all, in an order that depends on their names only.

    Raises:
        InputError: there is no such split.
    """
    part = lookup(SPLITS, split, 'the split of builtin:pydocs')
    for name, text in _all():
        if hashlib.sha256(name.encode()).digest()[0] * 20 // 256 in part:
            yield text


@functools.cache
def identity() -> list[str]:
    """Returns what decides the text: this file's version, Python's, and a hash of all files read."""
    content = hashlib.sha256()
    for name, path in _files():
        content.update(f'{name} {path.stat().st_size} '.encode())
        content.update(path.read_bytes())
    return [f'pydocs {VERSION}', sys.version, content.hexdigest()]


@functools.cache
def _all() -> list[tuple[str, str]]:
    """Returns (name, text) of every document; the same passage stands only once."""
    topics = {name: _tidy(text) for name, text in sorted(_topics().items())}
    found = [(f'topic {k}', text) for k, text in topics.items() if not _within(text, topics)]
    seen: set[str] = set()
    for name, path in _files():
        if name != 'pydoc_data.topics':
            found.append((name, '\n\n'.join(_passages(name, path, seen))))
    return [(name, text + '\n') for name, text in found if text]


def _files() -> Iterator[tuple[str, Path]]:
    """Yields (dotted name, file) of the modules, sorted by name."""
    root = Path(sysconfig.get_paths()['stdlib'])
    found = {}
    for path in root.rglob('*.py'):
        parts = path.relative_to(root).with_suffix('').parts
        if not _LEFT_OUT.intersection(parts) and all(part.isidentifier() for part in parts):
            found['.'.join(parts).removesuffix('.__init__')] = path
    topics = importlib.util.find_spec('pydoc_data.topics')
    if topics is not None:
        found['pydoc_data.topics'] = Path(topics.origin)
    yield from sorted(found.items())


def _topics() -> dict[str, str]:
    """Returns the texts of `help(topic)`; some distributions leave them out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics


def _within(text: str, topics: dict[str, str]) -> bool:
    """Is all but its title a part of a longer topic, as `for` is of `compound`?"""
    body = text.partition('\n\n')[2]
    return any(body in other and len(other) > len(text) for other in topics.values())


def _passages(name: str, path: Path, seen: set[str]) -> Iterator[str]:
    """Yields a module's docstrings in their order, each with its heading, leaving out the seen."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # A template or a deliberately bad file.
        return
    for heading, node in _documented(name, tree):
        text = _tidy(ast.get_docstring(node, clean=False))
        if text and text not in seen:
            seen.add(text)
            yield f'{heading}\n\n{text}'


def _documented(name: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yields (`json.dumps(obj, *, indent=None)`, node) of what may have a docstring, outside in."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        heading = f'{name}({ast.unparse(node.args)})'
    elif isinstance(node, ast.ClassDef):
        heading = f'class {name}({", ".join(map(ast.unparse, node.bases))})'.removesuffix('()')
    else:
        heading = name
    if ast.get_docstring(node, clean=False):
        yield heading, node
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _documented(f'{name}.{child.name}', child)


def _tidy(text: str) -> str:
    """Returns the text without indentation, underlines, runs of blank lines and curly quotes."""
    text = text.translate(_QUOTES)
    return _BLANK.sub('\n\n', _RULE.sub('', inspect.cleandoc(text) + '\n')).strip()
