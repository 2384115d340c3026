"""Metrics that survive a kill, files written whole, and the progress line."""

import dataclasses
import errno
import io
import json
import math
import os
import re
import struct
import sys
import types

import numpy as np
import pytest

from lm.config import LogConfig
from lm.errors import InputError
from lm.writer import (
    MetricsWriter,
    Progress,
    atomic_write,
    duration,
    plain,
    read_metrics,
    short,
)

QUIET = LogConfig(tensorboard=False, wandb='', profile=(), profile_all_hosts=False)
TENSORBOARD = LogConfig(tensorboard=True, wandb='', profile=(), profile_all_hosts=False)


def train(workdir, first, last, resume_step, log=QUIET):
    """Stands for a run: a line a step, and an evaluation every third."""
    with MetricsWriter(workdir, log, resume_step) as writer:
        for step in range(first, last + 1):
            writer.write(step, {'train/loss': np.float32(1 / step), 'train/skipped': step % 2})
            if step % 3 == 0:
                writer.write(step, {'valid/loss': 2 / step})


def without_time(workdir):
    return [{k: v for k, v in line.items() if k != 'time'} for line in read_metrics(workdir)]


def test_a_killed_run_ends_with_the_same_lines(tmp_path):
    train(tmp_path / 'undisturbed', 1, 12, 0)
    killed = tmp_path / 'killed'
    train(killed, 1, 8, 0)
    with open(killed / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 9, "train/lo')
    train(killed, 7, 10, 6)
    train(killed, 4, 12, 3)
    assert without_time(killed) == without_time(tmp_path / 'undisturbed')
    assert len(without_time(killed)) == 12 + 4


def test_a_fresh_start_drops_what_an_earlier_run_left(tmp_path):
    train(tmp_path, 1, 5, 0)
    train(tmp_path, 1, 2, 0)
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 2]


def test_any_torn_last_line_is_left_out(tmp_path):
    train(tmp_path, 1, 2, 0)
    path = tmp_path / 'metrics.jsonl'
    whole = path.read_bytes()
    end_of_first = whole.index(b'\n') + 1
    for cut in range(end_of_first, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [line['step'] for line in read_metrics(tmp_path)] == [1]
    assert read_metrics(tmp_path / 'nowhere') == []


def test_lines_are_flushed_and_strict_json(tmp_path):
    with MetricsWriter(tmp_path, QUIET, 0) as writer:
        writer.write(7, {'train/loss': math.nan, 'train/grad_norm': np.float32(np.inf), 'n': 3})

        def forbid(constant):
            raise AssertionError(f'{constant} is not JSON')

        text = (tmp_path / 'metrics.jsonl').read_text()  # before the writer is closed
        line = json.loads(text, parse_constant=forbid)
    assert list(line) == ['step', 'train/loss', 'train/grad_norm', 'n', 'time']
    assert line['step'] == 7
    assert line['train/loss'] is line['train/grad_norm'] is None
    assert math.isnan(read_metrics(tmp_path)[0]['train/loss'])


def test_sync_waits_for_the_disk(tmp_path, monkeypatch):
    synced = []
    with MetricsWriter(tmp_path, QUIET, 0) as writer:
        writer.write(1, {'train/loss': 1.0})
        monkeypatch.setattr(os, 'fsync', lambda file: synced.append(os.fstat(file).st_ino))
        writer.sync()
    assert synced == [(tmp_path / 'metrics.jsonl').stat().st_ino]


def test_a_disabled_writer_writes_nothing(tmp_path):
    with MetricsWriter(tmp_path / 'run', TENSORBOARD, 0, enabled=False) as writer:
        writer.write(1, {'train/loss': 1.0})
    assert not (tmp_path / 'run').exists()


def events(folder):
    """Reads TensorBoard's files: length, its checksum, a protocol buffer, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from('<Q', data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_tensorboard_has_each_step_and_hides_what_is_run_again(tmp_path):
    train(tmp_path, 1, 4, 0, TENSORBOARD)
    with MetricsWriter(tmp_path, TENSORBOARD, 2) as writer:
        writer.write(3, {'train/loss': 30.0, 'train/grad_norm': math.nan})
    found = events(tmp_path / 'tensorboard')
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in found
        for value in event.summary.value
    ]
    losses = [(step, value) for step, tag, value in scalars if tag == 'train/loss']
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25), (3, 30.0)]
    assert not any(tag == 'train/grad_norm' for _, tag, _ in scalars)
    assert [event.step for event in found if event.session_log.status == 1] == [3]


def test_wandb_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(InputError, match='pip install wandb'):
        MetricsWriter(tmp_path, dataclasses.replace(QUIET, wandb='project'), 0)


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    ids, logged = [], []

    def init(**options):
        ids.append(options['id'])
        return types.SimpleNamespace(
            log=lambda metrics, step: logged.append((step, metrics)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    for resume_step in (0, 1):
        with MetricsWriter(tmp_path, dataclasses.replace(QUIET, wandb='x'), resume_step) as w:
            w.write(resume_step + 1, {'train/loss': 2.0})
    assert ids[0] == ids[1]
    assert logged == [(1, {'train/loss': 2.0}), (2, {'train/loss': 2.0})]


def test_atomic_write(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    assert atomic_write(path, 'älter') == path
    assert path.read_text(encoding='utf-8') == 'älter'
    atomic_write(path, b'\x00\xff')
    assert path.read_bytes() == b'\x00\xff'
    assert os.listdir(path.parent) == ['file.txt']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = atomic_write(tmp_path / 'file.txt', 'old')

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, step, full)
    with pytest.raises(InputError, match=r'file\.txt.*No space left') as raised:
        atomic_write(path, 'new')
    assert '\n' not in str(raised.value)
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['file.txt']


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot write'):
        MetricsWriter(tmp_path / 'file' / 'run', QUIET, 0)


def test_plain():
    value = {'a': np.float32(2.5), 'b': (1, np.int64(2)), 'c': math.inf, 'd': np.arange(2), 3: None}
    assert plain(value) == {'a': 2.5, 'b': [1, 2], 'c': None, 'd': [0, 1], '3': None}
    assert plain(tmp := io) == str(tmp)
    assert plain(True) is True


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_plain_lines():
    file = io.StringIO()
    with Progress(10_000, file=file) as progress:
        for step in range(10, 10_001, 10):
            progress.update(step, loss=2.0, learning_rate=1e-3, tokens_per_second=18_234)
        progress.note('validation loss 2.1')
    lines = file.getvalue().splitlines()
    assert '\r' not in file.getvalue()
    assert 20 <= len(lines) <= 50
    assert lines[0].startswith('step    10/10000 · loss 2.000 · lr 1.0e-03 · 18.2k tok/s')
    assert lines[-2].startswith('step 10000/10000')
    assert lines[-1] == 'validation loss 2.1'


def test_a_resumed_short_run_shows_every_line():
    file = io.StringIO()
    with Progress(100, 95, file=file) as progress:
        for step in range(96, 101):
            progress.update(step)
    assert [line.split()[1] for line in file.getvalue().splitlines()] == [
        f'{step}/100' for step in range(96, 101)
    ]


def test_time_left_leaves_out_what_is_before_the_first_update():
    # Started at 0, compiled until 60, then 2 seconds a step: 10 steps are left after step 20.
    clock = iter([60.0, 60.0 + 2 * 10]).__next__
    file = io.StringIO()
    with Progress(30, file=file, clock=clock) as progress:
        progress.update(10)
        progress.update(20)
    assert [line.partition(' · ')[2] for line in file.getvalue().splitlines()] == ['', '0:20 left']


def test_a_terminal_gets_a_bar_with_notes_above():
    file = Terminal()
    with Progress(10, file=file) as progress:
        for step in range(1, 11):
            progress.update(step, loss=1.25)
            if step == 5:
                progress.note('halfway')
    assert '\r' in file.getvalue()
    assert re.search(r'100% .*10/10 · loss 1\.250', file.getvalue())
    assert 'halfway\n' in file.getvalue()


def test_other_hosts_show_nothing():
    for file in (io.StringIO(), Terminal()):
        with Progress(10, enabled=False, file=file) as progress:
            progress.update(10, loss=1.0)
            progress.note('done')
        assert file.getvalue() == ''


def test_short_and_duration():
    numbers = (0, 7.25, 999, 1000, 18_234, 123_456, 10_812_416, 124e6, 7.1e9, 999_999)
    assert [short(n) for n in numbers] == [
        *('0', '7.25', '999', '1k', '18.2k', '123k', '10.8M', '124M', '7.1B', '1M')
    ]
    seconds = (0.4, 42, 725, 12_000, 2 * 86_400 + 4 * 3600)
    assert [duration(s) for s in seconds] == ['0:00', '0:42', '12:05', '3:20:00', '2 d 4:00:00']
