import dataclasses
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from configs import base
from lm import config, tokenizer
from lm.data import blocks, features, source
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
    return [split.document(index).tolist() for index in range(split.num_documents)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, 'SIZE', 16)


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


def test_windows_are_parts_of_documents_on_disk_and_in_memory(config_data, small_blocks):
    stored = features.tokenize(make(), tokenizer.Bytes(), config_data, 'train')
    for split in (stored, features.from_texts(TEXTS, tokenizer.Bytes())):
        for index in range(4):
            document = split.document(index)
            assert document.dtype == np.int32
            for start, stop in [(0, 1), (1, 4), (3, 3), (2, 10**6), (len(document), 10**6)]:
                window = split.window(index, start, stop)
                assert window.dtype == np.int32
                assert window.tolist() == document[start:stop].tolist()


def test_blocks_change_nothing(config_data, small_blocks, monkeypatch):
    small = features.tokenize(make(), tokenizer.Bytes(), config_data, 'train')
    monkeypatch.setattr(blocks, 'SIZE', 1 << 20)
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


def test_large_vocabularies_take_four_bytes(config_data):
    made = tokenizer.Chars(''.join(map(chr, range(0x10000, 0x10000 + 70_000))))
    split = features.tokenize(make([chr(0x10000 + 69_999)]), made, config_data, 'train')
    assert split.tokens.dtype == np.uint32
    assert split.tokens[:].tolist() == [1, 70_003, 2]


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
    assert [path.name for path in features.cache_dir(config_data).iterdir()] == ['locks']


def test_empty_corpus_names_the_source(config_data):
    with pytest.raises(InputError, match="'made' holds no text"):
        features.tokenize(make(['']), tokenizer.Bytes(), config_data, 'train')


def test_several_at_once_leave_one_cache(config_data):
    barrier, reads, results = threading.Barrier(4), [], []

    def identity():
        barrier.wait(10)
        return TEXTS

    def read():
        reads.append(1)
        yield from map(Document, TEXTS)

    def work():
        made = dataclasses.replace(make(), read=read, identity=identity)
        results.append(features.tokenize(made, tokenizer.Bytes(), config_data, 'train'))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(reads) == 1
    assert all(documents_of(split) == documents_of(results[0]) for split in results)
    names = {path.name for path in features.cache_dir(config_data).iterdir()}
    assert names == {results[0].key, 'locks'}


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
