"""Where the wall time of runs goes: by a clock that is set by hand, and of a real run that broke off."""

import doctest
import json
import types

import pytest
from command_line import arguments, config_of, write_text

import lm
from lm import goodput
from lm.goodput import PARTS, Ledger
from lm.loop import Loop

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')


class Clock:
    """Seconds since 1970 and of a counter, set by hand."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def test_each_moment_belongs_to_one_part(tmp_path):
    clock = Clock(100.0)
    ledger = Ledger(97.0, clock, clock)
    ledger.open(tmp_path)
    clock.now += 2
    with ledger.during('evaluation'):
        clock.now += 5
        with ledger.during('compile'):
            clock.now += 7
        clock.now += 1
    ledger.switch('training')
    clock.now += 10
    assert ledger.summary() == {
        'seconds': 28.0,
        'share': 10 / 28,
        'starts': 1,
        'parts': {
            'training': 10.0,
            'evaluation': 6.0,
            'imports': 3.0,
            'compile': 7.0,
            'start': 2.0,
        },
    }


def start(workdir, clock, steps, log_at, finished=False):
    """A start that takes a second to begin and ten for each step, and is written at one of them."""
    ledger = Ledger(None, clock, clock)
    clock.now += 1
    ledger.open(workdir)
    for step in steps:
        ledger.switch(ledger.of_step(step))
        clock.now += 10
        if step == log_at:
            ledger.save(step, finished)
    return ledger


def test_over_restarts(tmp_path):
    """Of six steps the fifth was written last; the next start begins after the third, 100 s later."""
    clock = Clock(0.0)
    start(tmp_path, clock, range(1, 7), 5)
    clock.now += 100
    ledger = start(tmp_path, clock, range(4, 9), 8, finished=True)
    # The sixth step was not written, so its 10 seconds are downtime; it is not known to be done again.
    expected = {'training': 80.0, 'repeated': 20.0, 'start': 2.0, 'downtime': 110.0}
    assert ledger.summary()['parts'] == expected
    assert ledger.summary()['seconds'] == clock.now
    # The time after the end of a run is none of its.
    clock.now += 1e6
    later = start(tmp_path, clock, (), 0)
    assert later.summary()['parts'] == expected | {'start': 3.0}


def test_the_file_has_a_line_a_start_and_comes_through_damage(tmp_path):
    clock = Clock(0.0)
    start(tmp_path, clock, range(1, 4), 3)
    with open(tmp_path / goodput.FILE, 'a') as file:
        file.write('{"began": 3.0, "st')
    ledger = start(tmp_path, clock, range(4, 6), 5)
    for seconds in (0.123456, 0.876544, 0):  # It may be shorter than it was.
        clock.now += seconds
        ledger.save()
    assert (tmp_path / goodput.FILE).read_bytes().endswith(b'}\n')
    lines = (tmp_path / goodput.FILE).read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [3, 5]
    assert len(goodput.read(tmp_path)) == 2


def test_a_clock_that_was_set_back_takes_no_time_away(tmp_path):
    clock = Clock(1000.0)
    start(tmp_path, clock, range(1, 3), 2)
    clock.now = 500.0
    ledger = start(tmp_path, clock, range(3, 5), 4)
    assert ledger.summary()['parts'] == {'training': 40.0, 'start': 2.0}


def test_a_second_start_in_one_process_was_imported_for_before(tmp_path):
    clock = Clock(100.0)
    start(tmp_path, clock, range(1, 3), 2)
    clock.now += 5
    ledger = Ledger(40.0, clock, clock)
    assert ledger.seconds == {'imports': 86.0}
    ledger.open(tmp_path)
    assert ledger.summary()['parts'] == {'training': 20.0, 'start': 1.0, 'imports': 5.0}
    ledger.save()
    assert goodput.read(tmp_path)[-1]['began'] == 121.0


def test_an_error_leaves_the_ledger_where_it_was():
    ledger = Ledger()
    with pytest.raises(ValueError, match='bad'), ledger.during('evaluation'):
        raise ValueError('bad')
    assert ledger.part == 'evaluation'


@pytest.mark.parametrize(('busy', 'waited'), [(True, 0.0), (False, 4.0)])
def test_a_batch_is_waited_for_if_the_device_is_idle(busy, waited):
    clock = Clock(0.0)
    ledger = Ledger(None, clock, clock)
    ledger.switch('training')

    def items():
        clock.now += 4
        yield 'item'

    metrics = {'loss': types.SimpleNamespace(is_ready=lambda: not busy)}
    loop, pending = types.SimpleNamespace(ledger=ledger), types.SimpleNamespace(metrics=metrics)
    assert Loop.next_item(loop, items(), pending) == 'item'
    assert ledger.seconds.get('data_wait', 0.0) == waited
    assert sum(ledger.seconds.values()) == 4.0


def test_the_docstring():
    assert doctest.testmod(goodput) == (0, 4)


@pytest.mark.slow
def test_a_run_that_broke_off_and_went_on(tmp_path, monkeypatch):
    """It breaks off after step 8 and goes on from the checkpoint of step 6."""
    options = arguments(write_text(tmp_path / 'text.txt'), tmp_path / 'run', train__steps=12)
    log = Loop.log

    def breaking(self, pending, *rest):
        log(self, pending, *rest)
        if pending.step == 8:
            raise RuntimeError('killed')

    with monkeypatch.context() as patch:
        patch.setattr(Loop, 'log', breaking)
        with pytest.raises(RuntimeError, match='killed'):
            lm.train(config_of(options), tmp_path / 'run')
    report = lm.train(config_of(options), tmp_path / 'run')
    assert json.loads((tmp_path / 'run/report.json').read_text())['goodput'] == report['goodput']
    found, (first, last) = report['goodput'], goodput.read(tmp_path / 'run')
    assert (first['step'], last['step'], last['finished']) == (8, 12, True)
    assert last['seconds']['repeated'] > 0
    assert 'repeated' not in first['seconds']
    assert {'downtime', 'training', 'repeated', 'compile', 'evaluation', 'checkpoint'} <= set(
        found['parts']
    )
    assert list(found['parts']) == [part for part in PARTS if part in found['parts']]
    # The parts are all the time from the first start to the report.
    assert sum(found['parts'].values()) == pytest.approx(found['seconds'], abs=1e-6)
    whole = last['began'] + sum(last['seconds'].values()) - first['began']
    reporting = last['seconds']['report'] - found['parts']['report']
    assert found['seconds'] == pytest.approx(whole - max(reporting, 0), abs=1e-3)
    assert report['steps'] == 12
    for name in ('report.md', 'report.html'):
        text = (tmp_path / 'run' / name).read_text()
        assert 'steps done again after a restart' in text
        assert 'between a stop and the next start' in text
