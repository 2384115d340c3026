import random
import threading

import numpy as np
import pytest

from lm.data import shards
from lm.data.shards import Shard


@pytest.fixture(params=shards.FORMS)
def form(request):
    return request.param


def written(folder, form, dtype, parts):
    """Writes shards of the tokens 0, 1, ... and returns them; `parts` are (tokens, ends) of each."""
    made, start = [], 0
    for number, (count, ends) in enumerate(parts):
        name = f'{number:05}{form}'
        tokens = np.arange(start, start + count).astype(dtype)
        halves = np.split(tokens, [count // 2])
        size, digest = shards.write(folder / name, halves, [np.array(ends, np.int64)], dtype)
        made.append(Shard(name, size, digest, count, len(ends), 0, 0, 0))
        start += count
    return made


PARTS = [(40, [3, 17, 40]), (1, []), (64, [*range(1, 65)]), (33, [5])]
EXPECTED_ENDS = [3, 17, 40, *range(42, 106), 110]


@pytest.mark.parametrize('dtype', [np.uint16, np.uint32])
@pytest.mark.parametrize('record', [8, 48, 1 << 15])
def test_windows_and_ends_are_those_of_the_concatenation(
    dtype, record, form, tmp_path, monkeypatch
):
    monkeypatch.setattr(shards, 'RECORD', record)
    tokens = shards.Tokens(tmp_path, written(tmp_path, form, np.dtype(dtype), PARTS), dtype)
    plain = np.arange(138).astype(dtype)
    assert len(tokens) == 138
    np.testing.assert_array_equal(tokens[:], plain)
    rng = random.Random(record)
    for start, stop in [
        (0, 0),
        (138, 138),
        (39, 42),
        *([rng.randint(0, 140)] * 2 for _ in range(9)),
    ]:
        stop += rng.randint(0, 60)
        found = tokens[start:stop]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, plain[start:stop])
    assert tokens.ends().tolist() == EXPECTED_ENDS


def test_records_and_files_that_were_let_go_are_read_again(form, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'RECORD', 16)
    monkeypatch.setattr(shards, '_RECORDS_KEPT', 2)
    monkeypatch.setattr(shards, '_FILES_OPEN', 1)
    dtype = np.dtype(np.uint16)
    tokens = shards.Tokens(tmp_path, written(tmp_path, form, dtype, PARTS), dtype)
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for start in rng.integers(0, 130, 300):
            if tokens[start : start + 7].tolist() != [*range(start, start + 7)]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_same_tokens_make_the_same_file_however_they_are_cut(form, tmp_path):
    dtype, tokens, ends = np.dtype(np.uint16), np.arange(60_000), np.array([9, 60_000])
    made = [
        shards.write(tmp_path / f'a{form}', np.split(tokens.astype(dtype), cuts), [ends], dtype)
        for cuts in ([], [5], [100, 20_000])
    ]
    assert len(set(made)) == 1
    path = tmp_path / f'a{form}'
    assert shards.damage(path, *made[0]) == ''
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_damage_says_what_is_wrong(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'abc')
    digest = shards.sha256(path)
    assert shards.damage(path, 3, digest) == ''
    path.write_bytes(b'abd')
    assert 'another SHA-256' in shards.damage(path, 3, digest)
    path.write_bytes(b'ab')
    assert shards.damage(path, 3, digest) == 'has 2 bytes instead of 3'
    path.unlink()
    assert shards.damage(path, 3, digest) == 'is missing'
    path.mkdir()
    assert 'cannot be read' in shards.damage(path, path.stat().st_size, digest)


def test_what_array_record_cannot_write_is_an_error_of_the_system(tmp_path):
    if shards.array_record is None:
        pytest.skip('array_record has no package here')
    with pytest.raises(OSError, match='No such file'):
        shards._write_array_record(tmp_path / 'none/a', b'abc')
    if (full := shards.Path('/dev/full')).exists():
        with pytest.raises(OSError, match=r'No space left|not'):
            shards._write_array_record(full, b'abc' * 100_000)
