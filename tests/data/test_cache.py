"""A folder of tokens comes through kills and damage as if nothing had been."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import filelock
import numpy as np
import pytest

from lm import config, tokenizer
from lm.data import blocks, cache, features, shards, source
from lm.data.slices import Document, Slice
from lm.errors import InputError

# Five shards of two blocks, the last of one; documents go over the ends of blocks and of shards.
TEXTS = ['one two\nthree', 'é' * 9, 'four\n' * 24, 'six', 'seven eight nine\n' * 2]
LABELS = ['b', 'a', 'b', 'c', 'a']


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(blocks, 'SIZE', 16)
    monkeypatch.setattr(cache, 'SHARD_BLOCKS', 2)
    monkeypatch.setattr(shards, 'RECORD', 32)


def make(texts=TEXTS):
    documents = [Document(*text, '') for text in zip(texts, [1] * len(texts), strict=True)]
    documents = [d._replace(label=x) for d, x in zip(documents, LABELS, strict=True)]
    return source.Source('made', lambda: iter(documents), lambda: TEXTS, Slice())


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tokenize(data, texts=TEXTS):
    split = features.tokenize(make(texts), tokenizer.Bytes(), data, 'train')
    return split, features.cache_dir(data) / split.key


@pytest.fixture
def encoded(monkeypatch):
    """The texts of the blocks that were tokenized."""
    made, encode = [], blocks.encode

    def counted(block, **options):
        made.append(block.texts)
        return encode(block, **options)

    monkeypatch.setattr(blocks, 'encode', counted)
    return made


def test_shards_are_bounded_and_hold_the_documents(config_data, encoded):
    split, folder = tokenize(config_data)
    count = -(-len(encoded) // 2)
    assert count >= 5
    assert len(encoded) % 2  # The last has one.
    suffix = shards.form().suffix
    names = [f'{n:05}{end}' for n in range(count) for end in (suffix, '.json')]
    assert sorted(content(folder)) == sorted([*names, 'index.json', 'labels.npy'])
    index = json.loads((folder / 'index.json').read_text())
    assert [shard['name'] for shard in index['shards']] == names[::2]
    assert sum(shard['tokens'] for shard in index['shards']) == len(split.tokens)
    assert all(
        shard['sha256'] == shards.sha256(folder / shard['name']) for shard in index['shards']
    )
    documents = [[1, *tokenizer.Bytes().encode(text), 2] for text in TEXTS]
    assert [split.document(i).tolist() for i in range(5)] == documents
    rng = np.random.default_rng(0)
    for _ in range(200):
        document = rng.integers(5)
        start, size = rng.integers(len(documents[document])), rng.integers(40)
        window = split.window(document, start, start + size)
        assert window.dtype == np.int32
        assert window.tolist() == documents[document][start : start + size]
    assert [split.label_names[label] for label in split.labels] == LABELS


def test_a_source_that_fails_once_costs_no_finished_shard(config_data):
    whole = make()

    def failing():
        yield from list(whole.read())[:3]
        raise InputError("'a.txt' cannot be read: Input/output error.")

    broken = dataclasses.replace(whole, read=failing)
    with pytest.raises(InputError, match='Input/output error'):
        features.tokenize(broken, tokenizer.Bytes(), config_data, 'train')
    (work,) = features.cache_dir(config_data).glob('*.partial')
    first = next(work.glob(f'00000{shards.form().suffix}')).stat().st_mtime_ns
    split, folder = tokenize(config_data)
    assert (folder / f'00000{shards.form().suffix}').stat().st_mtime_ns == first
    assert [split.document(i)[1:-1].tolist() for i in range(5)] == [
        tokenizer.Bytes().encode(text).tolist() for text in TEXTS
    ]


def test_workers_change_no_byte(config_data):
    made = []
    for workers in (1, 2, 8):
        folder = f'{config_data.cache_dir}{workers}'
        data = dataclasses.replace(config_data, cache_dir=folder, workers=workers)
        made.append(content(tokenize(data)[1]))
    assert made[0] == made[1] == made[2]


def damaged(path, how):
    data = path.read_bytes()
    if how == 'gone':
        path.unlink()
    elif how == 'cut':
        path.write_bytes(data[:-9])
    else:
        place = len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


SAID = {'gone': 'is missing', 'cut': 'has ', 'flipped': 'has another SHA-256'}
SHARD = f'00002{shards.form().suffix}'


@pytest.mark.parametrize('how', SAID)
@pytest.mark.parametrize('name', [SHARD, 'labels.npy', 'index.json'])
def test_what_is_damaged_is_named_and_made_again_and_nothing_else(
    name, how, config_data, encoded, capsys
):
    split, folder = tokenize(config_data)
    good, texts = content(folder), encoded[4:6]
    times = {path: path.stat().st_mtime_ns for path in folder.glob(f'*{shards.form().suffix}')}
    damaged(folder / name, how)
    encoded.clear()
    again, _ = tokenize(config_data)
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert f"'{folder / name}' {'is missing or' if name == 'index.json' else SAID[how]}" in said
    assert content(folder) == good
    assert encoded == (texts if name == SHARD else [])
    touched = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert touched == ({SHARD} if name == SHARD else set())
    assert again.tokens[:].tolist() == split.tokens[:].tolist()
    tokenize(config_data)
    assert capsys.readouterr().err == ''


def test_several_damages_at_once(config_data, encoded, capsys):
    _, folder = tokenize(config_data)
    good = content(folder)
    names = [SHARD, f'00000{shards.form().suffix}', 'index.json', '00001.json']
    for name in names:
        damaged(folder / name, 'flipped')
    encoded.clear()
    tokenize(config_data)
    said = capsys.readouterr().err
    assert all(str(folder / name) in said for name in names)
    assert content(folder) == good
    assert len(encoded) == 6  # Of 00001 nobody knows how it was.


def test_what_does_not_come_out_as_it_was_is_made_again_as_a_whole(config_data, encoded, capsys):
    _, folder = tokenize(config_data)
    before, number = content(folder), len(encoded)
    damaged(folder / SHARD, 'cut')
    encoded.clear()
    split, _ = tokenize(config_data, [text.replace('o', 'u') for text in TEXTS])
    assert 'is not what it was' in capsys.readouterr().err
    assert len(encoded) > number
    assert 'o' not in ''.join(tokenizer.Bytes().decode(split.document(i)) for i in range(5))
    assert content(folder).keys() == before.keys()
    tokenize(config_data)
    assert capsys.readouterr().err == ''


SCRIPT = """
import json, os, signal, sys
from lm.config import DataConfig
from lm.data import cache, shards
from tests.data import test_cache
test_cache.blocks.SIZE, cache.SHARD_BLOCKS, shards.RECORD = 16, 2, 32
fields, place = json.loads(sys.argv[1]), sys.argv[2]
def die():
    os.kill(os.getpid(), signal.SIGKILL)
write, seal = shards.write, cache._seal
def writing(path, *arguments):
    if place == 'before' and path.name.startswith('00002'):
        path.with_name(path.name + '.tmp').write_bytes(b'half')
        die()
    return write(path, *arguments)
def sealing(path, fields):
    if place == 'after' and path.stem == '00002' or place == 'index' and path.stem == 'index':
        die()
    seal(path, fields)
shards.write, cache._seal = writing, sealing
test_cache.tokenize(DataConfig(**fields))
"""
FINISHED = {'before': 2, 'after': 2, 'index': None}


@pytest.mark.parametrize('place', FINISHED)
def test_a_kill_costs_the_shard_that_was_under_way(place, config_data, encoded):
    undisturbed = dataclasses.replace(config_data, cache_dir=config_data.cache_dir + '2')
    good = content(tokenize(undisturbed)[1])
    total = len(encoded)
    fields = json.dumps(config.to_dict(config_data))
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    for _ in range(2 if place == 'before' else 1):
        killed = subprocess.run(
            [sys.executable, '-c', SCRIPT, fields, place], env=environment, timeout=120
        )
        assert killed.returncode == -signal.SIGKILL
    (partial,) = features.cache_dir(config_data).glob('*.partial')
    assert not (partial / 'index.json').exists()
    encoded.clear()
    _, folder = tokenize(config_data)
    assert content(folder) == good
    finished = FINISHED[place]
    assert len(encoded) == (0 if finished is None else total - 2 * finished)
    assert not partial.exists()


def test_a_shard_that_was_damaged_before_a_restart_is_named(config_data, encoded, capsys):
    _, folder = tokenize(config_data)
    good, partial = content(folder), folder.with_name(f'{folder.name}.partial')
    folder.rename(partial)
    (partial / 'index.json').unlink()
    damaged(partial / SHARD, 'flipped')
    encoded.clear()
    tokenize(config_data)
    assert f"'{partial / SHARD}' has another SHA-256" in capsys.readouterr().err
    assert content(folder) == good
    assert len(encoded) == 2


def test_who_waits_for_another_says_so(config_data, monkeypatch, capsys):
    _, folder = tokenize(config_data)
    (folder / 'index.json').unlink()
    lock = filelock.FileLock(folder.parent / 'locks' / folder.name)
    acquire = filelock.FileLock.acquire

    def acquired(self, **options):
        if not options:  # It would wait now.
            lock.release()
        return acquire(self, **options)

    monkeypatch.setattr(filelock.FileLock, 'acquire', acquired)
    lock.acquire(blocking=False)
    tokenize(config_data)
    assert 'another process tokenizes train; waiting for it' in capsys.readouterr().err


def test_a_source_that_fails_at_once_leaves_nothing(config_data):
    def read():
        yield Document('one')
        raise InputError("'a.txt' is damaged.")

    made = dataclasses.replace(make(), read=read)
    with pytest.raises(InputError, match='is damaged'):
        features.tokenize(made, tokenizer.Bytes(), config_data, 'train')
    assert [path.name for path in features.cache_dir(config_data).iterdir()] == ['locks']


def test_labels_of_some_texts_are_none(config_data):
    def read():
        yield Document('a' * 200, label='x')
        yield Document('b')

    with pytest.raises(InputError, match='labels for some of its texts only'):
        features.tokenize(
            dataclasses.replace(make(), read=read), tokenizer.Bytes(), config_data, 'train'
        )


def test_elsewhere_than_on_linux_shards_are_plain_files(config_data, monkeypatch):
    split, folder = tokenize(config_data)
    monkeypatch.setattr(shards, 'array_record', None)
    plain, other = tokenize(config_data)
    assert other != folder
    assert (other / '00000.bin').exists()
    assert plain.tokens[:].tolist() == split.tokens[:].tolist()
    np.testing.assert_array_equal(plain.offsets, split.offsets)
