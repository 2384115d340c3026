"""A run that is killed, stopped, moved or damaged goes on to the same end."""

import json
import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import arguments, call, metrics, run, snapshot, start, write_text

from lm import checkpoint, tree
from lm import config as configs
from lm import run as runs
from lm import workdir as workdirs
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
from lm.inference import load
from lm.loop import Loop

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

STEPS = 30
KEEP = CheckpointConfig(every=1, keep=3, keep_best=1)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """A text, and the workdir of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp('undisturbed')
    text = write_text(folder / 'text.txt')
    result = run(arguments(text, folder / 'run', train__steps=STEPS))
    assert result.code == 0, result.err
    return text, folder / 'run'


def final_state(workdir):
    """The whole state of the newest checkpoint, on the host."""
    config = configs.parse(workdirs.read_config(workdir))
    built = runs.build(config, runs.build_tokenizer(config, workdir), runs.check_mesh(config))
    with Checkpoints(workdir, config.checkpoint, read_only=True) as checkpoints:
        step, state, data = checkpoints.restore(built.steps.shapes)
    return step, jax.device_get(state), data


def assert_same_run(workdir, other):
    assert metrics(workdir) == metrics(other)
    (step, state, data), (other_step, other_state, other_data) = map(final_state, (workdir, other))
    assert (step, data) == (other_step, other_data)
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert report(workdir)['splits'] == report(other)['splits']
    assert report(workdir)['samples'] == report(other)['samples']


def report(workdir):
    return json.loads((workdir / 'report.json').read_text())


# ------------------------------------------------------------------------------------ kill -9


def written(workdir):
    """Whole lines of metrics.jsonl as another process sees them while it is written."""
    path = workdir / 'metrics.jsonl'
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]


def starting(workdir, step):
    return (workdir / 'config.json').exists()


def training(workdir, step):
    lines = written(workdir)
    return bool(lines) and lines[-1]['step'] >= step


def saving(workdir, step):
    partial = any('orbax-checkpoint-tmp' in p.name for p in (workdir / 'checkpoints').glob('*'))
    return training(workdir, step) and partial


def evaluating(workdir, step):
    """The line of a step that is evaluated is there, and that of its evaluation is not."""
    lines = written(workdir)
    return bool(lines) and lines[-1]['step'] >= step and unfinished_evaluation(lines)


def unfinished_evaluation(lines):
    return lines[-1]['step'] % 5 == 0 and 'train/loss' in lines[-1]


def reporting(workdir, step):
    path = workdir / 'history.json'
    return path.exists() and 'finish' in path.read_text()


def kill_when(condition, options, workdir, step):
    """Starts the run and kills it at the first moment that the condition is seen."""
    process = start(options)
    while not condition(workdir, step):
        assert process.poll() is None, (condition.__name__, step, process.communicate())
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return condition(workdir, step)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(undisturbed, tmp_path):
    text, whole = undisturbed
    rng, workdir = random.Random(0), tmp_path / 'run'
    options = arguments(text, workdir, train__steps=STEPS)
    plan = [
        (starting, 0),
        (training, rng.randrange(1, 5)),
        (saving, rng.randrange(6, 9)),
        (evaluating, 10),
        (training, rng.randrange(16, 20)),
        (saving, rng.randrange(21, 24)),
        (evaluating, STEPS),
        (reporting, STEPS),
    ]
    hit = {}
    for condition, step in plan:
        seen = kill_when(condition, options, workdir, step)
        hit[condition.__name__] = hit.get(condition.__name__, 0) + seen
    # What was seen before the kill was still so after it: it did strike in a save, in an evaluation.
    assert hit['saving'] >= 1, hit
    assert hit['evaluating'] >= 1, hit
    result = run(options)
    assert result.code == 0, result.err
    assert_same_run(workdir, whole)
    events = [event['event'] for event in report(workdir)['history']]
    assert events.count('resume') >= 5
    parts = report(workdir)['goodput']['parts']
    assert parts['repeated'] > 0
    assert parts['downtime'] > 0
    assert not (workdir / 'unreadable').exists()


# ------------------------------------------------------------------------- stopping, going on

# A signal comes before step 10, after which an evaluation is due: batches are read one ahead.
STOP_AT_10 = """
import signal, sys
from lm import main
from lm.data import pipeline
batches = pipeline.batches
def stopping(dataset, start=0):
    for index, batch in batches(dataset, start):
        if index == 10:
            signal.raise_signal(signal.SIG{name})
        yield index, batch
pipeline.batches = stopping
main.app.run(main.main, argv=['lm.main', *sys.argv[1:]], flags_parser=main.parse_flags)
"""


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'code'), [('TERM', 75), ('INT', 0)])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_exactly(undisturbed, tmp_path, name, code):
    text, whole = undisturbed
    options = arguments(text, tmp_path / 'run', train__steps=STEPS, data__prefetch=1)
    options += [f'--stopped_code={code}'] if code else []
    result = run(options, program=STOP_AT_10.replace('{name}', name))
    assert result.code == code, result.err
    assert 'Asked to stop: saving step 10.' in result.err
    assert result.out == 'Stopped at step 10. The same command goes on from there.\n'
    assert not any('valid/loss' in line for line in metrics(tmp_path / 'run')[10:])
    assert not report(tmp_path / 'run')['finished']
    result = run(options)
    assert result.code == 0, result.err
    assert report(tmp_path / 'run')['history'][2]['event'] == 'resume'
    assert report(tmp_path / 'run')['history'][2]['step'] == 10
    assert_same_run(tmp_path / 'run', whole)


# A signal comes in a stage before the loop, so many times.
STOP_EARLY = """
import signal, sys
from lm import main
from lm import run as runs
tokenized_splits = runs.tokenized_splits
def stopping(*arguments):
    for _ in range({times}):
        signal.raise_signal(signal.SIGTERM)
    return tokenized_splits(*arguments)
runs.tokenized_splits = stopping
main.app.run(main.main, argv=['lm.main', *sys.argv[1:]], flags_parser=main.parse_flags)
"""


@pytest.mark.slow
@pytest.mark.parametrize(('times', 'code'), [(1, 75), (2, -signal.SIGTERM)])
def test_a_second_signal_kills(tmp_path, times, code):
    options = arguments(write_text(tmp_path / 'text.txt'), tmp_path / 'run')
    program = STOP_EARLY.replace('{times}', str(times))
    result = run([*options, '--stopped_code=75'], program=program)
    assert result.code == code, result.err
    assert result.err == 'lm: asked to stop, at the end of this step or stage; once more kills.\n'


@pytest.mark.first_quick
@pytest.mark.parametrize(
    ('place', 'name', 'step'),
    [
        (Checkpoints, 'restore', 2),
        (Checkpoints, 'restore', 0),
        (runs, 'build_tokenizer', 0),
        (runs, 'tokenized_splits', 0),
    ],
)
def test_a_signal_before_the_first_step_stops_after_the_stage(
    tmp_path, monkeypatch, place, name, step
):
    changes = {'data__valid': '', 'train__steps': 3}
    options = arguments(write_text(tmp_path / 'text.txt'), tmp_path / 'run', **changes)
    if step:
        with monkeypatch.context() as patch:
            patch.setattr(Loop, 'stops', lambda _, taken: taken == step)
            assert call(options).code == 0
    before, stage, done = signal.getsignal(signal.SIGINT), getattr(place, name), []

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        result = stage(*arguments)
        done.append(True)
        return result

    monkeypatch.setattr(place, name, interrupted)
    result = call([*options, '--stopped_code=77'])
    assert (result.code, done) == (77, [True]), result.err
    assert result.out == f'Stopped at step {step}. The same command goes on from there.\n'
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    result = call(options)
    assert result.code == 0, result.err
    assert [line['step'] for line in metrics(tmp_path / 'run')] == [1, 2, 3]


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_does_not_train_again(undisturbed, tmp_path):
    text, whole = undisturbed
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    before, earlier = snapshot(workdir), report(workdir)
    result = run(arguments(text, workdir, train__steps=STEPS))
    assert result.code == 0
    assert f'/{STEPS} ·' not in result.err  # no step in the progress
    after = snapshot(workdir)
    same = [name for name in before if name.startswith(('checkpoints/', 'metrics', 'tokenizer'))]
    assert len(same) > 10
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    for key in ('splits', 'samples', 'curves', 'throughput', 'finished', 'steps'):
        assert report(workdir)[key] == earlier[key], key


@pytest.mark.slow
def test_on_another_device_count_a_run_sees_the_same_batches(undisturbed, tmp_path):
    text, whole = undisturbed
    workdir = tmp_path / 'run'
    starts = [  # devices, mesh, and the batch at which it is stopped
        (1, {}, 6),
        (4, {'mesh__data': 1, 'mesh__fsdp': 2, 'mesh__tensor': 2}, 18),
        (8, {'mesh__data': 4, 'mesh__sequence': 2}, 1000),
    ]
    for devices, sizes, last in starts:
        program = STOP_AT_10.replace('{name}', 'TERM').replace('== 10', f'== {last}')
        result = run(arguments(text, workdir, train__steps=STEPS, **sizes), devices, program)
        assert result.code == 0, result.err
    found, expected = metrics(workdir), metrics(whole)
    assert [line['step'] for line in found] == [line['step'] for line in expected]
    for name in ('train/loss', 'valid/loss'):
        losses = [[line[name] for line in lines if name in line] for lines in (found, expected)]
        np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
    resumes = [e for e in report(workdir)['history'] if e['event'] in ('start', 'resume')]
    assert [event['devices'] for event in resumes] == [1, 4, 8]


# ------------------------------------------------------------------------------- checkpoints


def counting_state(value, size=1 << 10):
    """A state whose every number tells its step."""
    return {'params': {'a': jnp.full((4, size), value, jnp.float32), 'b': jnp.int32(value)}}


def shapes(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory):
    """A workdir with checkpoints of steps 1 and 2, and their files."""
    workdir = tmp_path_factory.mktemp('two_checkpoints')
    with Checkpoints(workdir, KEEP) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, counting_state(step), {'next_index': step}, 3.0 - step)
    return workdir


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b'')


def flipped(path):
    """One bit in each 16 bytes is another."""
    data = path.read_bytes()
    path.write_bytes(bytes(byte ^ (16 if i % 16 == 7 else 0) for i, byte in enumerate(data)))


def removed(path):
    path.unlink()


def restored(workdir, **settings):
    """The value of the restored state, its data, and what was said."""
    said = []
    with Checkpoints(workdir, KEEP, said.append, **settings) as checkpoints:
        step, state, data = checkpoints.restore(shapes(counting_state(0)))
        value = int(state['params']['b'])
        assert np.array_equal(np.unique(state['params']['a']), [value])
        assert step == value == data['next_index']
        if not settings:
            checkpoints.save(3, counting_state(3), {'next_index': 3}, 0.5)
            checkpoints.wait()
            assert checkpoints.steps[-1] == checkpoints.best == 3
    return step, said


@pytest.mark.slow
@pytest.mark.parametrize('damage', [cut, emptied, flipped, removed], ids=lambda f: f.__name__)
def test_whatever_file_is_damaged_no_wrong_number_is_restored(two_checkpoints, tmp_path, damage):
    files = [p for p in sorted(two_checkpoints.glob('checkpoints/2/**/*')) if p.is_file()]
    fell_back = set()
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(two_checkpoints, workdir)
        broken = workdir / file.relative_to(two_checkpoints)
        damage(broken)
        held = snapshot(workdir / 'checkpoints/2')
        step, said = restored(workdir)
        if step == 1:
            fell_back.add(file.name)
            assert any('2 cannot be read' in line for line in said), said
            assert any('Going on from step 1.' in line for line in said), said
            assert snapshot(workdir / 'unreadable/2') == held  # nothing is deleted
    assert fell_back, 'no damage was seen: these are not the files that are read'


def test_numbers_that_changed_in_a_readable_file_are_not_used(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        checkpoints.save(1, counting_state(1), {'next_index': 1}, 2.0)
        checkpoints.save(2, counting_state(2), {'next_index': 2}, 1.0)
        fingerprint = tree.fingerprint
        monkeypatch.setattr(
            checkpoint,
            '_snapshot',
            lambda state, _: {'state': state, 'fingerprint': fingerprint(state) + 1},
        )
        checkpoints.save(3, counting_state(3), {'next_index': 3}, 0.5)
    data = tmp_path / 'checkpoints/2/data/metadata'
    data.write_text(data.read_text().replace('2', '3', 1))
    monkeypatch.undo()
    step, said = restored(tmp_path)
    assert step == 1
    for newer, line in zip((3, 2), said, strict=False):
        assert line == (
            f'The checkpoint of step {newer} cannot be read '
            '(its fingerprint does not match its contents).'
        )


@pytest.mark.parametrize('damage', ['folder is empty', 'folder is a file', 'array is gone'])
def test_a_broken_checkpoint_is_set_aside_and_the_one_before_it_used(
    two_checkpoints, tmp_path, damage
):
    workdir = tmp_path / 'run'
    shutil.copytree(two_checkpoints, workdir)
    newest = workdir / 'checkpoints/2'
    shutil.rmtree(newest / 'state' if damage == 'array is gone' else newest)
    if damage == 'folder is empty':
        newest.mkdir()
    if damage == 'folder is a file':
        newest.write_text('')
    step, said = restored(workdir)
    assert step == 1
    if damage == 'array is gone':
        assert said[0].startswith('The checkpoint of step 2 cannot be read (')
        assert said[1].startswith('Going on from step 1. What cannot be read was moved to ')
        assert sorted(p.name for p in (workdir / 'unreadable/2').iterdir() if p.is_dir()) == [
            'data',
            'metrics',
        ]


def test_one_who_only_reads_moves_nothing_and_breaks_no_save(two_checkpoints, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(two_checkpoints, workdir)
    (workdir / 'checkpoints/2/data/metadata').write_text('{"next_ind')
    saving_now = workdir / 'checkpoints/3.orbax-checkpoint-tmp'
    saving_now.mkdir()
    before = snapshot(workdir)
    step, said = restored(workdir, read_only=True)
    assert step == 1
    assert said[-1] == 'Using that of step 1.'
    assert snapshot(workdir) == before
    assert saving_now.is_dir()


@pytest.mark.slow
def test_when_no_checkpoint_can_be_read_nothing_is_changed(undisturbed, tmp_path):
    text, whole = undisturbed
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    for path in workdir.glob('checkpoints/*/state/_METADATA'):
        cut(path)
    before = snapshot(workdir)
    for mode in ('train', 'evaluate', 'generate'):
        options = arguments(text, workdir, train__steps=STEPS)
        result = call([*options, f'--mode={mode}'])
        assert result.code == 2
        assert result.err.count('\n') == 1
        assert result.err.startswith('error: no checkpoint in ')
        assert 'Nothing was changed' in result.err
        assert snapshot(workdir) == before


@pytest.mark.slow
def test_evaluation_leaves_a_checkpoint_and_falls_back(undisturbed, tmp_path):
    _, whole = undisturbed
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    newest = workdir / f'checkpoints/{STEPS}/data/metadata'
    flipped(newest)
    model = load(workdir)
    assert model.step < STEPS
    assert newest.exists()
