"""Traces of some steps of a run, and what its report makes of them."""

import json
import re
import shutil

import pytest
from command_line import arguments, assert_refused, call, config_of, snapshot, write_text

import lm
from lm import profile, run_page
from lm.loop import Loop

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')


def tiny(folder, **overrides):
    overrides = {'data__valid': '', 'train__eval_every': 0, 'log__profile': '(4, 6)'} | overrides
    return arguments(write_text(folder / 'text.txt'), folder / 'run', train__steps=9, **overrides)


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
    """A run that broke off at step 8, after its trace; and one that went on from step 6."""
    folder = tmp_path_factory.mktemp('traced')
    options, log = tiny(folder), Loop.log

    def breaking(self, pending, *rest):
        log(self, pending, *rest)
        if pending.step == 8:
            raise RuntimeError('killed')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, 'log', breaking)
        with pytest.raises(RuntimeError, match='killed'):
            lm.train(config_of(options), folder / 'run')
    before = snapshot(folder / 'run' / 'profile')
    result = call(options)
    assert result.code == 0, result.err
    return folder / 'run', before, result


def test_the_steps_are_traced_once(traced):
    workdir, before, _ = traced
    assert snapshot(workdir / 'profile') == before  # A resume after them writes none.
    names = {name.rpartition('/')[2] for name in before}
    assert len(before) == len(names) == 3
    assert 'operations.json' in names
    assert {name.split('.', 1)[1] for name in names} == {'json', 'xplane.pb', 'trace.json.gz'}


def test_the_report_says_where_their_time_went(traced):
    workdir, _, result = traced
    found = json.loads((workdir / 'report.json').read_text())['profile']
    assert found['steps'] == [4, 6]
    assert found['devices'] == 2
    assert found['seconds'] > 0
    assert sum(found['device'].values()) == pytest.approx(1)
    assert sum(found['host'].values()) == pytest.approx(1)
    assert {'matmul', 'attention', 'other', 'collective'} <= set(found['device'])
    assert {'metrics', 'dispatch', 'data_wait', 'log'} <= set(found['host'])
    assert (workdir / found['trace']).is_file()
    page = (workdir / 'report.html').read_text()
    assert f'href="{found["trace"]}"' in page
    assert not re.search(r'https?://', page)
    assert 'matrix products' in page
    assert found['trace'] in (workdir / 'report.md').read_text()
    lines = [line for line in result.out.splitlines() if line.startswith('Profile of steps 4 to 6')]
    assert len(lines) == 1
    assert str(workdir / found['trace']) in lines[0]
    assert f'xprof --logdir={workdir / "profile"}' in lines[0]


def test_of_several_hosts_the_table_says_whose_it_is(traced, tmp_path):
    shutil.copytree(traced[0] / 'profile', tmp_path / 'profile')
    (file,) = tmp_path.rglob('*.xplane.pb')
    (trace,) = tmp_path.rglob('*.trace.json.gz')
    name = file.name.removesuffix('.xplane.pb')
    assert profile.summary(tmp_path)['of'] == name
    for other in ('zz.b', '0'):  # The first one has no trace for Perfetto beside it.
        shutil.copy(file, file.with_name(f'{other}.xplane.pb'))
    shutil.copy(trace, trace.with_name('0.trace.json.gz'))
    found = profile.summary(tmp_path)
    assert found['of'] == 'zz.b'
    assert found['trace'] == str(file.parent.relative_to(tmp_path))
    shutil.copy(trace, trace.with_name('zz.b.trace.json.gz'))
    found = profile.summary(tmp_path)
    assert found['trace'].endswith('/zz.b.trace.json.gz')
    for text in (run_page.markdown, run_page.html):
        assert 'Steps 4 to 6, on 2 devices of host zz.b:' in text({'profile': found})['Profile']
        del found['of']  # As of reports from before.
        assert 'Steps 4 to 6, on 2 devices:' in text({'profile': found})['Profile']
        found['of'] = 'zz.b'


def test_rows_of_the_table():
    found = {
        'steps': [10, 13],
        'seconds': 2.0,
        'device': {'matmul': 0.75, 'idle': 0.25},
        'host': {'metrics': 0.9, 'python': 0.1},
    }
    assert run_page.profile_rows(found)[1] == [
        ['device', 'matrix products', '375.00', '75.0 %'],
        ['device', 'idle', '125.00', '25.0 %'],
        ['loop', "waiting for a step's metrics: the device is at work", '450.00', '90.0 %'],
        ['loop', 'the rest of the loop', '50.00', '10.0 %'],
    ]


def test_a_trace_that_does_not_reach_its_end_is_written(tmp_path):
    """The last of its steps is beyond the last of the run; and other runs may trace after it."""
    workdir = tmp_path / 'run'
    result = call(tiny(tmp_path, log__profile='(8, 20)'))
    assert result.code == 0, result.err
    assert json.loads((workdir / 'report.json').read_text())['profile']['steps'] == [8, 9]


def test_a_trace_that_was_cut_short(traced, tmp_path, capsys):
    shutil.copytree(traced[0] / 'profile', tmp_path / 'profile')
    file = next(tmp_path.rglob('*.xplane.pb'))
    file.write_bytes(file.read_bytes()[:-1000])
    assert profile.summary(tmp_path) is None
    assert 'cannot be read' in capsys.readouterr().err


def test_without_a_trace(tmp_path):
    assert profile.summary(tmp_path) is None
    (tmp_path / 'profile/plugins/profile/2026').mkdir(parents=True)
    assert profile.summary(tmp_path) is None


@pytest.mark.parametrize(
    ('value', 'part'),
    [
        ('(13, 10)', 'config.log.profile = (13, 10) must be () or the first and the last step'),
        ('(0, 3)', 'such as (10, 13)'),
        ('(-2, 3)', 'such as (10, 13)'),
        ('(4,)', 'such as (10, 13)'),
        ('(4, 5, 6)', 'such as (10, 13)'),
        ('(10, 12)', 'begins after the last step, 9'),
        ("('a', 'b')", 'config.log.profile'),
        ('(1.5, 3)', 'config.log.profile'),
    ],
)
def test_bad_values(tmp_path, value, part):
    assert_refused(call(tiny(tmp_path, log__profile=value)), part)
    assert not (tmp_path / 'run').exists()
