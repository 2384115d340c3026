"""Runs of several processes, as several hosts have them; the watch alone is in `test_watch.py`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.clusters import ClusterEnv

import lm
from lm import command, hosts, watch
from lm.errors import TRY_AGAIN, InputError, TryAgain
from lm.workdir import read_history
from lm.writer import read_metrics
from tests import command_line
from tests.processes import Processes, free_address

STEPS = 40
# Rows, positions, parameters, experts and layers that are split over the hosts, or in common.
MESHES = {
    'fsdp x tensor': {'mesh.data': 1, 'mesh.fsdp': 4, 'mesh.tensor': 2},
    'data x sequence': {'mesh.data': 2, 'mesh.sequence': 4},
    'fsdp x expert': {'mesh.data': 1, 'mesh.fsdp': 2, 'mesh.expert': 4, 'model.experts': 4},
    'stage x data': {'mesh.stage': 2, 'mesh.data': 4, 'model.num_layers': 2},
}
FAST = {
    'data.valid': '',
    'train.steps': STEPS,
    'checkpoint.every': 1000,
    'generate.max_tokens': 1,
}
PROGRAM = ('-m', 'lm.main')
# It gets a signal while it tokenizes.
ASKED_EARLY = """
import signal, sys
from lm import main
from lm import run as runs
tokenized_splits = runs.tokenized_splits
def asked(*arguments):
    signal.raise_signal(signal.SIGTERM)
    return tokenized_splits(*arguments)
runs.tokenized_splits = asked
main.app.run(main.main, argv=['lm.main', *sys.argv[1:]], flags_parser=main.parse_flags)
"""
# A start may take as long as it does on a loaded machine; one that is gone is noticed soon.
LIMIT = watch.Limits(300, 5, 300)


def options(text, workdir, mesh=None, **changes):
    """Returns the options of a run; `train__steps=4` changes a key."""
    keys = FAST | (mesh or {}) | {key.replace('__', '.'): value for key, value in changes.items()}
    return command_line.arguments(text, workdir, **keys)


def join(
    processes, count, devices, *commands, limits=LIMIT, address=None, prefixes=None, programs=None
):
    """Starts processes of one run; several commands are one for each. Returns their numbers."""
    address = address or free_address()
    return [
        processes.start(
            [
                *(programs[i] if programs else PROGRAM),
                *commands[i % len(commands)],
                f'--coordinator={address}',
                f'--processes={count}',
                f'--process={i}',
                f'--silence_limit={limits.silence}',
                f'--stall_limit={limits.stall}',
                f'--join_limit={limits.join}',
            ],
            devices,
            prefixes[i] if prefixes else (),
        )
        for i in range(count)
    ]


def all_end(processes, numbers, code):
    """Asserts that all end with an exit code; returns what process 0 wrote on stderr."""
    found = [processes.end(number) for number in numbers]
    assert [end.code for end in found] == [code] * len(numbers), found
    return found[0].err


def await_step(processes, numbers, workdir, step):
    """Returns when so many steps are taken."""
    processes.await_that(numbers[0], lambda: len(read_metrics(workdir)) >= step)


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path / 'processes') as found:
        yield found


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return command_line.write_text(tmp_path_factory.mktemp('text') / 'text.txt')


@pytest.fixture(scope='module')
def whole(text, tmp_path_factory):
    """By mesh, the workdir of a run that was not disturbed, of one process or of four."""
    made = {}

    def made_once(mesh, count):
        if (mesh, count) in made:
            return made[mesh, count]
        workdir = made[mesh, count] = tmp_path_factory.mktemp('whole') / 'run'
        command = options(text, workdir, MESHES[mesh])
        if count == 1:
            assert command_line.call(command).code == 0
        else:
            with Processes(workdir.parent / 'processes') as processes:
                all_end(processes, join(processes, count, 8 // count, command), 0)
        return workdir

    return made_once


def params(workdir):
    return jax.tree.map(np.asarray, lm.load(workdir).params)


def losses(workdir):
    return [line['train/loss'] for line in command_line.metrics(workdir)]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
def test_four_hosts_train_as_one(mesh, whole):
    one, four = whole(mesh, 1), whole(mesh, 4)
    both = map(params, (one, four))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *both)
    np.testing.assert_allclose(losses(one), losses(four), rtol=0, atol=1e-5)
    assert losses(one)[-1] < losses(one)[0] - 0.1
    starts = [event for event in read_history(four) if event['event'] == 'start']
    assert [event['devices'] for event in starts] == [8]
    files = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in four.iterdir()) == files


@pytest.mark.slow
def test_a_preempted_host_stops_all_and_any_number_goes_on(text, whole, processes, tmp_path):
    mesh, workdir = MESHES['fsdp x tensor'], tmp_path / 'run'
    numbers = join(processes, 4, 2, options(text, workdir, mesh))
    await_step(processes, numbers, workdir, 1)
    processes.signal(numbers[2], signal.SIGTERM)
    all_end(processes, numbers, 0)
    (step,) = (int(path.name) for path in (workdir / 'checkpoints').iterdir())
    assert 0 < step < STEPS
    assert [line['step'] for line in command_line.metrics(workdir)] == [*range(1, step + 1)]
    copies = {count: shutil.copytree(workdir, tmp_path / f'{count}') for count in (2, 1)}

    again = join(processes, 4, 2, options(text, workdir, mesh))
    two = join(processes, 2, 2, options(text, copies[2], {'mesh.fsdp': 2, 'mesh.tensor': 2}))
    assert command_line.call(options(text, copies[1], mesh)).code == 0
    all_end(processes, again, 0)
    all_end(processes, two, 0)
    undisturbed = whole('fsdp x tensor', 4)
    assert command_line.metrics(workdir) == command_line.metrics(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, params(workdir), params(undisturbed))
    for copy in copies.values():
        np.testing.assert_allclose(losses(copy), losses(undisturbed), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_host_that_is_preempted_before_the_first_step_stops_all(text, processes, tmp_path):
    command = [*options(text, tmp_path / 'run'), '--stopped_code=77']
    numbers = join(processes, 2, 1, command, programs=[PROGRAM, ('-c', ASKED_EARLY)])
    found = [processes.end(number) for number in numbers]
    assert [end.code for end in found] == [77, 77], found
    assert found[0].out.endswith('\nStopped at step 0. The same command goes on from there.\n')
    assert 'Stopped' not in found[1].out
    assert not read_metrics(tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('victim', 'what', 'says'),
    [(0, signal.SIGKILL, 'has died'), (1, signal.SIGSTOP, 'has not been heard of for ')],
    ids=('kill', 'stop'),
)
def test_all_stop_when_a_host_is_gone(victim, what, says, text, processes, tmp_path):
    command = options(text, tmp_path / 'run', train__steps=10**6, checkpoint__every=2)
    numbers = join(processes, 2, 1, command)
    await_step(processes, numbers, tmp_path / 'run', 10)
    processes.signal(numbers[victim], what)
    end = processes.end(numbers[1 - victim], 60)
    assert end.code == watch.TRY_AGAIN, end
    line = end.err.splitlines()[-1]
    assert f'(process {victim} of 2) {says}' in line
    assert 'Traceback' not in end.err
    assert 'Check failure' not in end.err
    step = lm.load(tmp_path / 'run').step
    assert step >= 2
    assert line.endswith(f'all stop. The same command goes on from step {step}.')
    if what == signal.SIGSTOP:
        processes.signal(numbers[victim], signal.SIGCONT)
        assert processes.end(numbers[victim], 60).code == watch.TRY_AGAIN


BAD = {
    'another config': (
        [{}, {'train__steps': 7}],
        ['does not have the same config', 'train.steps (7 there'],
    ),
    'a mesh': ([{'mesh__data': 3}], ['error: config.mesh (data=3, fsdp=1) needs 3 devices']),
    'another workdir': ([{}, {}], ['(process 1 of 2): workdir', 'is not one folder for all hosts']),
    'no room for tokens': ([{}], ['(process 1 of 2): ', '/proc/none']),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', BAD)
def test_bad_input_ends_all_with_one_line(case, text, processes, tmp_path):
    changes, parts = BAD[case]
    folders = [tmp_path / 'a', tmp_path / ('b' if case == 'another workdir' else 'a')]
    commands = [options(text, folders[i % len(folders)], **c) for i, c in enumerate(changes)]
    prefixes = [(), ('env', 'LM_CACHE_DIR=/proc/none') if case == 'no room for tokens' else ()]
    error = all_end(processes, join(processes, 2, 1, *commands, prefixes=prefixes), 2)
    assert len(error.splitlines()) == 1
    assert error.startswith('error: ')
    for part in parts:
        assert part in error
    assert processes.end(1).err == ''


def test_two_commits_do_not_train_together(monkeypatch, tmp_path):
    code = hosts._code()
    assert code['lm/step.py'] != code['lm/mesh.py']
    assert {'jax', 'python', 'lm/data/pipeline.py'} < set(code)


# ------------------------------------------------------------------------------- two networks


def ip(*arguments):
    subprocess.run(['ip', *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def two_hosts():
    """Names of two network namespaces with a link between them, each with its own /etc/hosts."""
    if sys.platform != 'linux' or os.geteuid() != 0 or not shutil.which('ip'):
        pytest.skip('only root on Linux with iproute2 may make networks')
    names = [f'lm{os.getpid()}{side}' for side in 'ab']
    folders = [Path('/etc/netns') / name for name in names]
    try:
        try:
            for name in names:
                ip('netns', 'add', name)
            ends = [('name', name, 'netns', name) for name in names]
            ip('link', 'add', *ends[0], 'type', 'veth', 'peer', *ends[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f'no networks can be made here: {error.stderr.strip()}')
        for number, (name, folder) in enumerate(zip(names, folders, strict=True), 1):
            folder.mkdir(parents=True)
            (folder / 'hosts').write_text(
                f'127.0.0.1 localhost\n10.77.0.{number} {os.uname().nodename}\n'
            )
            ip('-n', name, 'addr', 'add', f'10.77.0.{number}/24', 'dev', name)
            ip('-n', name, 'link', 'set', name, 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        yield names
    finally:
        for name, folder in zip(names, folders, strict=True):
            subprocess.run(['ip', 'netns', 'del', name], check=False, capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_cut_link_stops_both_hosts(two_hosts, text, processes, tmp_path):
    command = options(text, tmp_path / 'run', {'mesh.data': 1, 'mesh.fsdp': 2}, train__steps=10**6)
    prefixes = [('ip', 'netns', 'exec', name) for name in two_hosts]
    numbers = join(processes, 2, 1, command, address='10.77.0.1:4000', prefixes=prefixes)
    await_step(processes, numbers, tmp_path / 'run', 10)
    ip('-n', two_hosts[1], 'link', 'set', two_hosts[1], 'down')
    for number, other in zip(numbers, (1, 0), strict=True):
        end = processes.end(number, 60)
        assert end.code == watch.TRY_AGAIN, end
        assert f'(process {other} of 2) has not been heard of for ' in end.err


# ------------------------------------------------------------------------------- who is who


def test_slurm_says_who_is_who(monkeypatch):
    for name, value in {
        'SLURM_JOB_ID': '7',
        'SLURM_STEP_NODELIST': 'node[003-004]',
        'SLURM_NTASKS': '4',
        'SLURM_PROCID': '3',
        'SLURM_LOCALID': '1',
    }.items():
        monkeypatch.setenv(name, value)
    place, devices = hosts.find('', None, None, LIMIT)
    assert (place.count, place.index, devices) == (4, 3, [1])
    assert place.address == f'node003:{7 + 65535 - 2**12 + 1}'
    assert place.hub == ('node003', 7 + 65535 - 2**12 + 2)
    assert hosts.find('a:1', 9, None, LIMIT)[0] == ('a:1', 9, 3)
    monkeypatch.setenv(
        'JAX_LOCAL_DEVICE_IDS', '0,1,2,3'
    )  # As lm.launch: a process for all of a node.
    assert hosts.find('', None, None, LIMIT)[1] == [0, 1, 2, 3]


def test_a_cluster_that_does_not_answer_is_asked_again_later(monkeypatch):
    def ask(*_):
        raise RuntimeError('Failed to recognize coordinator address\nafter 300 s')

    monkeypatch.setattr(ClusterEnv, 'auto_detect_unset_distributed_params', ask)
    with pytest.raises(
        TryAgain, match='Failed to recognize coordinator address after 300 s'
    ) as error:
        hosts.find('', None, None, LIMIT)
    assert command.as_line(error.value)[1] == TRY_AGAIN == 75


def test_the_environment_says_who_is_who(monkeypatch):
    for name, value in {
        'JAX_COORDINATOR_ADDRESS': 'job-0.job:1234',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '1',
    }.items():
        monkeypatch.setenv(name, value)
    assert hosts.find('', None, None, LIMIT)[0] == ('job-0.job:1234', 2, 1)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (('', None, None), 'give --coordinator=HOST:PORT --processes=N --process=I'),
        (('a:1', 2, None), r'give --process=I\.'),
        (('a', 2, 0), '--coordinator=a is no HOST:PORT'),
        (('a:1', 2, 2), '--process=2 of --processes=2: they are 0 to 1'),
    ],
)
def test_who_is_who_is_said_wholly(given, message):
    with pytest.raises(InputError, match=message):
        hosts.find(*given, LIMIT)


def test_alone_there_is_nothing_to_do(tmp_path):
    hosts.reached(3)
    hosts.same('config', {})
    hosts.leave('error', 2)
    hosts.check_shared(tmp_path, 'none')
    assert json.dumps(hosts._last_step()) == 'null'
