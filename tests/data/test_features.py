import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from configs import base
from lm import config, tokenizer
from lm.data import features, source
from lm.data.slices import Document, Slice
from lm.errors import InputError
from lm.pretrained_tokenizer import HuggingFace
from tests.test_tokenizer import trained_elsewhere

TEXTS = ['one two\nthree', 'é', 'four five\n' * 40, 'six']


def make(texts=TEXTS, name='made'):
    """A source of given texts."""
    documents = [Document(text, len(text) % 2) for text in texts]
    return source.Source(name, lambda: iter(documents), lambda: texts, Slice())


def documents_of(split):
    return [
        split.tokens[a:b].tolist() for a, b in zip(split.offsets, split.offsets[1:], strict=False)
    ]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(features, '_BLOCK', 16)


def test_documents_stand_between_bos_and_eos(config_data):
    made = tokenizer.Bytes()
    split = features.tokenize(make(), made, config_data, 'train')
    assert documents_of(split) == [[1, *made.encode(text), 2] for text in TEXTS]
    assert split.tokens.dtype == np.uint16
    assert split.offsets.dtype == np.int64
    assert split.num_documents == 4
    assert split.num_targets == len(split.tokens) - 4 == sum(split.lengths - 1)
    assert split.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert split.num_words == sum(len(text.split()) for text in TEXTS)
    assert split.invalid_bytes == sum(len(text) % 2 for text in TEXTS)


def test_blocks_change_nothing(config_data, small_blocks, monkeypatch):
    small = features.tokenize(make(), tokenizer.Bytes(), config_data, 'train')
    monkeypatch.setattr(features, '_BLOCK', 1 << 20)
    other = dataclasses.replace(config_data, cache_dir=config_data.cache_dir + '2')
    large = features.tokenize(make(), tokenizer.Bytes(), other, 'train')
    assert documents_of(small) == documents_of(large)
    assert dataclasses.replace(small, tokens=None, offsets=None) == dataclasses.replace(
        large, tokens=None, offsets=None
    )


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_threads_change_nothing(kind, config_data, small_blocks, tmp_path):
    size = 266 if kind == 'words' else 278
    spec = dataclasses.replace(
        config.parse(base.get_config()).tokenizer, kind=kind, vocab_size=size
    )
    if kind == 'huggingface':
        spec = dataclasses.replace(spec, path=str(HuggingFace(trained_elsewhere()).save(tmp_path)))
    made = tokenizer.build(spec, lambda: TEXTS)
    one, many = (
        features.tokenize(
            make(TEXTS * 20),
            made,
            dataclasses.replace(
                config_data, cache_dir=f'{config_data.cache_dir}{workers}', workers=workers
            ),
            'train',
        )
        for workers in (1, 7)
    )
    assert documents_of(one) == documents_of(many)
    assert documents_of(one) == [[1, *made.encode(text), 2] for text in TEXTS * 20]
    assert dataclasses.replace(one, tokens=None, offsets=None) == dataclasses.replace(
        many, tokens=None, offsets=None
    )


def test_blocks_come_in_order_and_few_at_a_time():
    made, taken, begun = [], [], []

    def blocks():
        for number in range(20):
            begun.append(number)
            yield number

    for encoded in features._in_order(lambda n: made.append(n) or -n, blocks(), workers=3):
        taken.append(encoded)
        assert len(begun) <= len(taken) + 6
    assert taken == [-n for n in range(20)]
    assert sorted(made) == list(range(20))


def test_a_failure_in_a_thread_is_raised():
    def encode(block):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(features._in_order(encode, iter(range(20)), workers=2))


def test_words_are_those_of_split():
    rng = random.Random(0)
    spaces = [chr(point) for point in range(0x110000) if chr(point).isspace()]
    others = ['a', 'é', '日', '\u200b', '\ufeff', '😀', '\x00', '\x1b', '\u3022', '\U0010ffff']
    assert len(features._IS_SPACE) == max(map(ord, spaces)) + 2
    for space in spaces:
        assert features._count_words(f'a{space}b') == 2
    for _ in range(300):
        text = ''.join(rng.choice(rng.choice([spaces, others])) for _ in range(rng.randint(1, 30)))
        assert features._count_words(text) == len(text.split())


def test_large_vocabularies_take_four_bytes(config_data):
    made = tokenizer.Chars(''.join(map(chr, range(0x10000, 0x10000 + 70_000))))
    split = features.tokenize(make([chr(0x10000 + 69_999)]), made, config_data, 'train')
    assert split.tokens.dtype == np.uint32
    assert split.tokens.tolist() == [1, 70_003, 2]


def test_the_second_time_nothing_is_read(config_data):
    first = features.tokenize(make(), tokenizer.Bytes(), config_data, 'train')

    def read():
        raise AssertionError

    again = dataclasses.replace(make(), read=read)
    second = features.tokenize(again, tokenizer.Bytes(), config_data, 'train')
    assert documents_of(first) == documents_of(second)


def test_the_key_follows_content_tokenizer_and_part(config_data):
    part = dataclasses.replace(make(), part=Slice(Fraction(0), Fraction(50), '%'))
    splits = [
        features.tokenize(made, tokens, config_data, 'train')
        for made in (make(), make(TEXTS[:2]), part)
        for tokens in (tokenizer.Bytes(), tokenizer.Chars('abc'), tokenizer.Chars('abcd'))
    ]
    assert len({split.key for split in splits}) == len(splits)
    assert (
        features.tokenize(make(name='x'), tokenizer.Bytes(), config_data, '').key == splits[0].key
    )


def test_a_failure_leaves_nothing(config_data):
    def read():
        yield Document('a' * 10)
        raise InputError('x:1 is not JSON')

    with pytest.raises(InputError, match='x:1'):
        features.tokenize(
            dataclasses.replace(make(), read=read), tokenizer.Bytes(), config_data, 'train'
        )
    assert list(features.cache_dir(config_data).iterdir()) == []


def test_empty_corpus_names_the_source(config_data):
    with pytest.raises(InputError, match="'made' holds no text"):
        features.tokenize(make(['']), tokenizer.Bytes(), config_data, 'train')


@pytest.mark.parametrize('name', ['tokens.bin', 'offsets.npy', 'meta.json'])
@pytest.mark.parametrize('damage', ['cut', 'gone'])
def test_a_damaged_cache_is_made_again(name, damage, config_data):
    split = features.tokenize(make(), tokenizer.Bytes(), config_data, 'train')
    good = documents_of(split)
    path = features.cache_dir(config_data) / split.key / name
    if damage == 'cut':
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
    again = features.tokenize(make(), tokenizer.Bytes(), config_data, 'train')
    assert documents_of(again) == good


def test_several_at_once_leave_one_cache(config_data):
    barrier, results = threading.Barrier(4), []

    def read():
        barrier.wait(10)  # All of them have found the cache empty.
        yield from map(Document, TEXTS)

    def work():
        made = dataclasses.replace(make(), read=read)
        results.append(features.tokenize(made, tokenizer.Bytes(), config_data, 'train'))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(documents_of(split) == documents_of(results[0]) for split in results)
    assert [path.name for path in features.cache_dir(config_data).iterdir()] == [results[0].key]


def test_cache_dir(config_data, monkeypatch):
    nowhere = dataclasses.replace(config_data, cache_dir='')
    monkeypatch.setenv('LM_CACHE_DIR', '/somewhere')
    assert features.cache_dir(nowhere) == Path('/somewhere')
    monkeypatch.delenv('LM_CACHE_DIR')
    assert features.cache_dir(nowhere) == Path.home() / '.cache/lm'


def test_a_cache_that_cannot_be_written(config_data, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot be written.*config.data.cache_dir'):
        features.tokenize(
            make(),
            tokenizer.Bytes(),
            dataclasses.replace(config_data, cache_dir=str(tmp_path / 'file')),
            'train',
        )


def run(script, *arguments):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


SCRIPT = """
import json, os, signal, sys
from lm import tokenizer
from lm.config import DataConfig
from lm.data import features, source
features._BLOCK = 16
fields = json.loads(sys.argv[1])
made = source.parse(fields['train'], DataConfig(**fields))
if sys.argv[2] == 'kill':
    encode = features._encode
    def dying(block, **options):
        if 'five' in block.texts[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(block, **options)
    features._encode = dying
split = features.tokenize(made, tokenizer.Bytes(), DataConfig(**fields), 'train')
print(split.key, split.tokens.tolist())
"""


@pytest.mark.slow
def test_a_kill_leaves_no_half_cache(config_data, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    (tmp_path / 'text.txt').write_text('\n'.join(TEXTS))
    data = dataclasses.replace(config_data, train=f'text:{tmp_path}/text.txt')
    fields = json.dumps(config.to_dict(data))
    killed = run(tmp_path / 'script.py', fields, 'kill')
    assert killed.returncode == -signal.SIGKILL
    good = run(tmp_path / 'script.py', fields, 'live')
    key, _, tokens = good.stdout.partition(' ')
    assert json.loads(tokens) == [1, *tokenizer.Bytes().encode('\n'.join(TEXTS)), 2]
    assert (features.cache_dir(data) / key / 'meta.json').exists()
