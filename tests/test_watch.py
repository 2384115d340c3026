"""The watch over processes, without JAX: programs that do nothing but be watched."""

import signal
import subprocess
import sys

import pytest

from lm import watch
from tests.processes import Processes, free_address

# Waits for what it is told on its input; until then it goes on, or stands still.
PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path
from lm.watch import Hub, Limits, Member, Place, newest_step
address, count, index, limits, options = sys.argv[1], *map(json.loads, sys.argv[2:])
place, limits = Place(address, count, index), Limits(*limits)
hub = Hub(place, limits) if index == 0 else None
member = Member(place, limits, f'h{index}', lambda: newest_step(Path(options.get('folder', 'none'))))
member.takes_steps = not options.get('rests')
print('in', flush=True)
member.same('config', {'seed': 0, **options.get('facts', {})})
if 'error' in options:
    member.error(*options['error'])
while not options.get('leaves'):
    member.marks += not options.get('stands')
    member.step = 3 if options.get('stands') else 4
    time.sleep(0.01)
member.bye()
if hub:
    hub.wait(60)
"""
LIMITS = [60, 3, 600]


class Three:
    """Three processes, their options by number."""

    def __init__(self, processes, limits=LIMITS, count=3, **options):
        self.processes, address = processes, free_address()
        self.numbers = [
            processes.start(
                ['-c', PROGRAM, address]
                + [watch.json.dumps(x) for x in (3, i, limits, options.get(f'h{i}', {}))]
            )
            for i in range(count)
        ]

    def all_in(self):
        for number in self.numbers:
            self.processes.await_text(number, 'in\n')

    def ends(self):
        return [self.processes.end(number, 60) for number in self.numbers]


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path / 'processes') as found:
        yield found


@pytest.mark.first_quick
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize(
    ('what', 'says'),
    [(signal.SIGKILL, 'has died'), (signal.SIGSTOP, 'has not been heard of for ')],
    ids=('kill', 'stop'),
)
def test_all_stop_when_one_is_gone(what, says, victim, processes, tmp_path):
    (tmp_path / 'checkpoints' / '20').mkdir(parents=True)
    (tmp_path / 'checkpoints' / '30.partial').mkdir()
    options = {'folder': str(tmp_path / 'checkpoints')}
    three = Three(processes, h0=options, h1=options, h2=options)
    three.all_in()
    processes.signal(three.numbers[victim], what)
    for other in {0, 1, 2} - {victim}:
        end = processes.end(three.numbers[other], 60)
        assert end.code == watch.TRY_AGAIN
        (line,) = end.err.splitlines()
        assert line.startswith(f'lm: host h{victim} (process {victim} of 3) {says}')
        assert line.endswith('all stop. The same command goes on from step 20.')
    if what == signal.SIGSTOP:  # It is not wanted any more.
        processes.signal(three.numbers[victim], signal.SIGCONT)
        assert processes.end(three.numbers[victim], 60).code == watch.TRY_AGAIN


def test_one_that_stands_still_is_named(processes):
    three = Three(processes, [60, 60, 1], h2={'stands': True})
    for end in three.ends():
        assert end.code == watch.TRY_AGAIN
        assert 'host h2 (process 2 of 3) does nothing since step 3, for ' in end.err


def test_all_that_stand_still_wait_for_each_other(processes):
    options = {f'h{i}': {'stands': True} for i in range(3)}
    for end in Three(processes, [60, 60, 1], **options).ends():
        assert end.code == watch.TRY_AGAIN
        assert end.err.startswith('lm: no host takes a step since step 3, for ')


def test_all_that_came_stop_when_one_does_not(processes):
    three = Three(processes, [1, 3, 600], count=2)
    for end in three.ends():
        assert end.code == watch.TRY_AGAIN
        assert 'process 2 of 3 did not come within 1 s. Here are: h0 (0), h1 (1).' in end.err


def test_process_0_does_not_come(processes):
    command = ['-c', PROGRAM, free_address(), '3', '1', '[1, 3, 600]', '{}']
    end = processes.end(processes.start(command), 60)
    assert end.code == watch.TRY_AGAIN
    assert 'process 0 did not answer at 127.0.0.1:' in end.err


def test_what_differs_is_named_once(processes):
    one = Three(processes, h1={'facts': {'seed': 7, 'steps': 9}})
    found = one.ends()
    assert [end.code for end in found] == [2, 2, 2]
    here, there = watch.digest({'seed': 0}), watch.digest({'seed': 7, 'steps': 9})
    assert found[0].err == (
        'error: host h1 (process 1 of 3) does not have the same config as host h0 (process 0 of 3): '
        f'{there} there, {here} here: seed (7 there, 0 here), steps (9 there, None here).\n'
    )
    assert found[1].err == found[2].err == ''


@pytest.mark.slow
def test_an_error_of_one_ends_all_and_process_0_says_it(processes):
    found = Three(processes, h2={'error': ['no such file.', 2]}).ends()
    assert [end.code for end in found] == [2, 2, 2]
    assert [end.err for end in found] == [
        'error: host h2 (process 2 of 3): no such file.\n', '', '',
    ]  # fmt: skip


def test_an_error_of_all_is_said_once(processes):
    error = {'error': ['the mesh does not fit.', 2]}
    found = Three(processes, h0=error, h1=error, h2=error).ends()
    assert [end.code for end in found] == [2, 2, 2]
    assert [end.err for end in found] == ['error: the mesh does not fit.\n', '', '']


def test_who_leaves_is_not_missed(processes):
    found = Three(processes, **{f'h{i}': {'leaves': True} for i in range(3)}).ends()
    assert found == [(0, 'in\n', '')] * 3


def test_two_cannot_be_the_same_process(processes):
    address = free_address()
    numbers = [
        processes.start(['-c', PROGRAM, address, '3', str(i), '[60, 3, 600]', '{}'])
        for i in (0, 1, 1)
    ]
    found = [processes.end(number, 60) for number in numbers]
    assert 'error: hosts h1 and h1 are both process 1.' in found[0].err
    assert found[0].code == 2


def test_the_watch_needs_no_jax():
    program = 'import sys, lm.watch; print("jax" in sys.modules)'
    found = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    assert found.stdout == 'False\n'
