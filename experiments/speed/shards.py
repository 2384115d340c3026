"""Tokens on the disk: how fast a large text becomes shards, is checked, and is read by random windows.

The text is that of `inputs.py` in `FILES` files of about 1 MB, 100 MB in all. Sentencepiece's own batch
call gets it cut as lm cuts it, and already in memory: it neither reads nor writes, and counts nothing.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.inputs import PART, THREADS, Built, data_config, documents, trained
from experiments.speed.race import Case, Contestant
from lm import tokenizer
from lm.data import cache, features, shards, source

FILES = 100


def text_files() -> Path:
    """Returns the folder of the text, which it writes if it is not there."""
    folder = Path(tempfile.gettempdir()) / 'lm_speed_texts'
    text = documents()
    text *= FILES * 1_000_000 // len(text.encode()) + 1
    cuts = [text.find('\n', i * len(text) // FILES) + 1 for i in range(1, FILES)]
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(text)], strict=True)):
        path, data = folder / f'{number:03}.txt', text[start:stop].encode()
        if not path.exists() or path.read_bytes() != data:
            folder.mkdir(exist_ok=True)
            path.write_bytes(data)
    return folder


def measured(folder: Path, work: Callable[[], Any]) -> float:
    """Returns the MB/s at which `work` went through the folder's files."""
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    start = time.perf_counter()
    work()
    return size / (time.perf_counter() - start)


def facts_of(made: tokenizer.Tokenizer, tokens: int) -> dict[str, Any]:
    return {
        'tokens': [tokens],
        'vocab_size': made.vocab_size,
        'threads': THREADS,
        'version': f'sentencepiece {version("sentencepiece")}',
    }


def lm_shards(kind: str) -> Built:
    """`lm.data.features.tokenize` into an empty cache: hash, read, encode, count words, write, hash."""
    folder, made = text_files(), trained(kind)
    place = Path(tempfile.gettempdir()) / f'lm_speed_{os.getpid()}'
    data = data_config(document='file', cache_dir=str(place), workers=THREADS)

    def work() -> features.TokenizedSplit:
        return features.tokenize(source.parse(f'text:{folder}/*.txt', data), made, data, 'speed')

    def sample() -> float:
        found = measured(folder, work)
        shutil.rmtree(place)
        return found

    tokens = work().num_targets - FILES  # Without EOS.
    shutil.rmtree(place)
    return facts_of(made, tokens), sample


def sentencepiece_batch(kind: str) -> Built:
    """The library's own batch call, with as many threads."""
    folder, made = text_files(), trained(kind)
    texts = (path.read_text(encoding='utf-8') for path in sorted(folder.iterdir()))
    parts = [part for text in texts for part in PART.findall(text)]

    def work() -> int:
        found = made._processor.encode(parts, out_type='numpy', num_threads=THREADS)
        return sum(map(len, found))

    return facts_of(made, work()), lambda: measured(folder, work)


# --- reading ---------------------------------------------------------------------------------------

TOKENS, WINDOW, WINDOWS = 100_000_000, 257, 20_000


def _array() -> np.ndarray:
    return np.random.default_rng(0).integers(4, 8192, TOKENS).astype(np.uint16)


def windows(form: str) -> Built:
    """Windows at random places of 200 MB of tokens, of which `lm.data.shards` keeps 64 MB in memory.

    Args:
        form: of `lm.data.shards.FORMS`; or '' for one file of all tokens in numpy's memory map.
    """
    folder = tempfile.TemporaryDirectory(prefix='lm_speed')
    path, rng = Path(folder.name), np.random.default_rng(1)
    if form:
        made = []
        for number, part in enumerate(np.array_split(_array(), 10)):
            name = f'{number:05}{form}'
            size, digest = shards.write(path / name, [part], [np.array([len(part)])], part.dtype)
            made.append(shards.Shard(name, size, digest, len(part), 1, 0, 0, 0))
        tokens = shards.Tokens(path, made, np.dtype(np.uint16))
    else:
        _array().tofile(path / 'tokens')
        tokens = np.memmap(path / 'tokens', np.uint16, 'r')

    def sample() -> float:
        starts = rng.integers(0, TOKENS - WINDOW, WINDOWS)
        start = time.perf_counter()
        for begin in starts:
            np.asarray(tokens[begin : begin + WINDOW], np.int32)
        return (time.perf_counter() - start) / WINDOWS * 1e6

    # The folder lives as long as what it is read by.
    return {'tokens': len(tokens), 'folder': folder.name}, lambda: (folder, sample())[1]


def opening() -> Built:
    """What a start pays for a cache that is there: every byte of 200 MB is hashed, in threads."""
    folder = tempfile.TemporaryDirectory(prefix='lm_speed')
    path, files = Path(folder.name), {}
    for number, part in enumerate(np.array_split(_array(), 10)):
        name = f'{number:05}{shards.form().suffix}'
        files[name] = shards.write(path / name, [part], [], part.dtype)
    job = cache.Job(None, None, {}, 0, 'speed')

    def sample() -> float:
        start = time.perf_counter()
        if cache._damaged(path, files, job):
            raise ValueError('the files are damaged')
        return sum(size for size, _ in files.values()) / 1e6 / (time.perf_counter() - start)

    return {'folder': folder.name}, lambda: (folder, sample())[1]


def _contestant(name: str, build: str, **options: Any) -> Contestant:
    return Contestant(name, f'experiments.speed.shards:{build}', options)


CASES = [
    *(
        Case(
            f'shards/100 MB of text/{kind}',
            'MB/s',
            True,
            (
                _contestant('lm', 'lm_shards', kind=kind),
                _contestant("sentencepiece's batch call", 'sentencepiece_batch', kind=kind),
            ),
            agree='tokens',
            tolerance=1e-5,
        )
        for kind in ('unigram', 'bpe')
    ),
    Case(
        f'shards/a window of {WINDOW} tokens',
        'us',
        False,
        (
            _contestant('lm', 'windows', form='.array_record'),
            _contestant('plain files', 'windows', form='.bin'),
            _contestant('one memory map', 'windows', form=''),
        ),
    ),
    Case('shards/checked', 'MB/s', True, (_contestant('lm', 'opening'),)),
]
