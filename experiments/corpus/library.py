"""As much text as is wanted, of Python's own sources: each copy has other letters, and so other words.

A copy has the same statistics as the sources, but no shingle in common with another one: the letters are
permuted, each time in another way (numbers and marks stay).
"""

import json
import random
import string
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}


def files() -> Iterator[Path]:
    """Yields the standard library's sources, sorted by name."""
    root = Path(sysconfig.get_paths()['stdlib'])
    for path in sorted(root.rglob('*.py')):
        if not _LEFT_OUT.intersection(path.relative_to(root).parts):
            yield path


def write(folder: Path, size: int) -> int:
    """Writes JSON lines, a file a copy, of `size` bytes of text in all; returns the bytes of text."""
    texts = [path.read_bytes().decode(errors='ignore') for path in files()]
    folder.mkdir(parents=True, exist_ok=True)
    written, copy = 0, 0
    while written < size:
        letters = list(string.ascii_lowercase)
        random.Random(copy).shuffle(letters)
        small = ''.join(letters)
        table = str.maketrans(string.ascii_letters, small + small.upper())
        with (folder / f'{copy:03d}.jsonl').open('w', encoding='utf-8') as file:
            for text in texts:
                other = text.translate(table) if copy else text
                file.write(json.dumps({'text': other}, ensure_ascii=False) + '\n')
                written += len(other.encode())
                if written >= size:
                    break
        copy += 1
    return written
