"""Rendered jobs run, with stand-ins for the tools that write down what they were called with."""

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import launch_jobs
import pytest

from lm import launch
from lm.errors import InputError, RunStopped
from lm.launch import tpu_vm

# Writes its words to calls.jsonl, then answers: of its plan, the first pattern that they match says a
# list of [output, exit code], of which the last one stays. A hundred calls are too many.
STAND_IN = f"""#!{sys.executable} -SE
import json, os, re, shutil, sys
folder = os.path.dirname(os.path.abspath(__file__))
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(folder + '/calls.jsonl', 'a') as file:
    file.write(json.dumps(words) + chr(10))
for word in words if 'scp' in words else []:
    if os.path.isfile(word):
        shutil.copy(word, folder + '/copied')
if len(open(folder + '/calls.jsonl').readlines()) > 100:
    os.kill(os.getppid(), 9)
plan = json.load(open(folder + '/plan.json'))
for pattern, answers in plan.items():
    if re.search(pattern, ' '.join(words)):
        out, code = answers.pop(0) if len(answers) > 1 else answers[0]
        json.dump(plan, open(folder + '/plan.json', 'w'))
        print(out)
        sys.exit(code)
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Makes stand-ins, and returns what plans their answers."""
    folder = tmp_path / 'tools'
    (folder / 'copied').mkdir(parents=True)
    for name in ('gcloud', 'kubectl', 'sbatch', 'sky'):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    monkeypatch.setenv('WANDB_API_KEY', "hunter2's")
    monkeypatch.setattr(tpu_vm, 'PAUSE', 0)

    def plan(**answers: list) -> Path:
        (folder / 'plan.json').write_text(json.dumps(answers.pop('of', {}) | answers))
        return folder

    plan()
    return plan


def calls(folder: Path) -> list[list[str]]:
    path = folder / 'calls.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def refuse(_: str) -> None:
    """Says nothing."""


PLAIN = [target for target in launch.TARGETS if target != 'tpu-vm']


# ----------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize('target', PLAIN)
def test_commands_run_in_order_each_shown_before(target, tools, tmp_path):
    folder, said = tools(), []
    rendered = launch.render(target, launch_jobs.job(target))

    def say(line: str) -> None:
        said.append((line, len(calls(folder))))

    launch.execute(rendered, tmp_path / 'out', say)
    made = launch.commands(rendered, tmp_path / 'out')
    assert len(made) == 2
    assert calls(folder) == made
    shown = [(f'+ {shlex.join(command)}', i) for i, command in enumerate(made)]
    assert said[:2] == shown
    assert [line for line, _ in said[2:]] == [f'Logs: {rendered.logs}', f'Stop: {rendered.stop}']
    for name, text in rendered.files.items():
        assert (tmp_path / 'out' / name).read_text() == text


@pytest.mark.parametrize('target', PLAIN)
@pytest.mark.parametrize('fails', [0, 1])
def test_the_first_command_that_fails_is_the_last(target, fails, tools, tmp_path):
    folder = tools(of={'.': [['', 0]] * fails + [['', 3]]})
    rendered = launch.render(target, launch_jobs.job(target))
    with pytest.raises(RunStopped, match='exit code 3 of: ') as raised:
        launch.execute(rendered, tmp_path / 'out', refuse)
    made = launch.commands(rendered, tmp_path / 'out')
    assert calls(folder) == made[: fails + 1]
    assert str(raised.value) == f'exit code 3 of: {shlex.join(made[fails])}'


@pytest.mark.parametrize('target', launch.TARGETS)
def test_a_program_that_is_missing_is_named_before_anything_is_done(
    target, tools, tmp_path, monkeypatch
):
    folder = tools()
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(InputError) as raised:
        launch.execute(launch.render(target, launch_jobs.job(target)), tmp_path / 'out', refuse)
    tool = {'tpu-vm': 'gcloud', 'gke': 'kubectl', 'slurm': 'sbatch', 'skypilot': 'sky'}[target]
    message = f"'{tool}' is not installed: {launch.PROGRAMS[tool]}. Nothing was run."
    assert str(raised.value) == message
    assert not calls(folder)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('target', launch.TARGETS)
def test_the_printed_script_does_the_same(target, tools, tmp_path):
    states = {'queued-resources list': [['ACTIVE', 0]], 'tpu-vm list': [['READY', 0]]}
    code = launch_jobs.FOLDER if target == 'slurm' else launch_jobs.GIT
    rendered = launch.render(target, launch_jobs.job(target, code=code))
    folder = tools(of=states)
    launch.execute(rendered, tmp_path / 'a', refuse)
    executed = calls(folder)
    (folder / 'calls.jsonl').unlink()
    text = launch.script(rendered, tmp_path / 'b', 'two\nlines')
    assert 'hunter2' not in text
    subprocess.run(['bash'], input=text, text=True, check=True, capture_output=True)
    again = [
        [w.replace(str(tmp_path / 'b'), str(tmp_path / 'a')) for w in c] for c in calls(folder)
    ]

    def the_same_each_time(words: list[str]) -> list[str]:
        found = [word for word in words if not word.startswith('/tmp')]
        return [re.sub(r'host.sh [\d-]+', 'host.sh', word) for word in found]

    if target == 'tpu-vm':  # What is copied lies in a temporary folder, and attempts have names.
        executed, again = map(the_same_each_time, executed), map(the_same_each_time, again)
    assert list(again) == list(executed)
    assert launch_jobs.snapshot(tmp_path / 'a') == launch_jobs.snapshot(tmp_path / 'b')


# ---------------------------------------------------------------------------------------- tpu-vm


def steps(folder: Path) -> list[str]:
    """What gcloud was asked to do, without looks at the state."""
    made = [' '.join(words[3:]) for words in calls(folder)]
    names = ('queued-resources create', 'queued-resources delete', 'tpu-vm scp')
    found = []
    for line in made:
        named = [name.split()[-1] for name in names if line.startswith(name)]
        if 'host.sh' in line and 'ssh' in line:
            named = ['train']
        found += named
    return found


def keep(
    tools: Callable, tmp_path: Path, trained: list, queue: list, node: list, **changes: object
):
    """Runs launch.sh against what gcloud answers; returns the folder and the error."""
    folder = tools(
        of={
            'queued-resources list': [[state, 0] for state in queue],
            'tpu-vm list': [[state, 0] for state in node],
            'ssh .*host.sh': [['', code] for code in trained],
        }
    )
    changes = {'code': launch_jobs.GIT} | changes
    rendered = launch.render('tpu-vm', launch_jobs.job('tpu-vm', **changes))
    try:
        launch.execute(rendered, tmp_path / 'out', refuse)
    except RunStopped as error:
        return folder, str(error).partition(' of: ')[0]
    return folder, None


def test_a_tpu_is_asked_for_trained_on_and_deleted(tools, tmp_path):
    queue = ['', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
    folder, error = keep(tools, tmp_path, [0], queue, ['CREATING', 'READY'], spot=True)
    assert error is None
    assert steps(folder) == ['create', 'scp', 'train', 'delete']
    [create] = [words for words in calls(folder) if 'create' in words]
    assert create == [
        *('gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'gpt2', '--zone=us-west4-a'),
        *('--node-id=gpt2', '--accelerator-type=v5litepod-16'),
        *('--runtime-version=v2-alpha-tpuv5-lite', '--spot', '--quiet'),
    ]
    assert all('--worker=all' in words for words in calls(folder) if {'ssh', 'scp'} & set(words))


def test_a_tpu_that_was_taken_away_is_asked_for_again(tools, tmp_path):
    queue = ['', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', '', 'ACTIVE', 'ACTIVE', '', 'ACTIVE']
    node = ['READY', 'READY', 'PREEMPTED', 'READY']
    # The connection is lost; the hosts are asked to stop, and save; then all ends.
    folder, error = keep(tools, tmp_path, [255, 77, 0], queue, node)
    assert error is None
    assert steps(folder) == [
        *('create', 'scp', 'train', 'delete'),
        *('create', 'scp', 'train', 'delete'),
        *('create', 'scp', 'train', 'delete'),
    ]


def test_a_host_that_failed_starts_again_on_the_same_tpu(tools, tmp_path):
    folder, error = keep(tools, tmp_path, [134, 0], ['ACTIVE'], ['READY'])
    assert error is None
    assert steps(folder) == ['scp', 'train', 'scp', 'train', 'delete']


@pytest.mark.parametrize(('machine', 'code', 'ends'), [('v5e-16', 102, 2), ('v5e-4', 101, 1)])
def test_what_a_restart_would_repeat_ends_it(tools, tmp_path, machine, code, ends):
    machine = launch.machine(machine)
    folder, error = keep(tools, tmp_path, [code], ['ACTIVE'], ['READY'], machine=machine)
    assert error == f'exit code {ends}'
    assert steps(folder) == ['scp', 'train', 'delete']


def test_a_lost_connection_is_made_again_and_is_no_restart(tools, tmp_path):
    trained = [255, 255, 0]
    folder, error = keep(tools, tmp_path, trained, ['ACTIVE'], ['READY'], max_restarts=0)
    assert error is None
    assert steps(folder) == ['scp', 'train', 'train', 'train', 'delete']
    asked = [words for words in calls(folder) if 'host.sh' in words[-1]]
    assert asked[0] == asked[1] == asked[2]


@pytest.mark.parametrize('silence', [1, tpu_vm.RECONNECTS])
def test_what_gcloud_itself_fails_at_is_a_lost_connection(silence, tools, tmp_path):
    answers = {
        'queued-resources list': [['ACTIVE', 0], *[['', 1]] * silence, ['ACTIVE', 0]],
        'tpu-vm list': [['READY', 0]],
        'ssh .*host.sh': [['', 255], ['', 1], ['', 0]],
    }
    folder = tools(of=answers)
    job = launch_jobs.job('tpu-vm', max_restarts=0, code=launch_jobs.GIT)
    launch.execute(launch.render('tpu-vm', job), tmp_path / 'out', refuse)
    assert steps(folder) == ['scp', 'train', 'train', 'train', 'delete']


def test_a_host_that_failed_since_the_tpu_is_gone_is_one_restart(tools, tmp_path):
    answers = {
        'queued-resources list': [['ACTIVE', 0], ['ACTIVE', 0], ['SUSPENDED', 0], ['ACTIVE', 0]],
        'tpu-vm list': [['READY', 0]],
        'scp': [['', 0], ['', 255], ['', 0]],
        'ssh .*host.sh': [['', 75], ['', 0]],
    }
    folder = tools(of=answers)
    job = launch_jobs.job('tpu-vm', max_restarts=1, code=launch_jobs.GIT)
    launch.execute(launch.render('tpu-vm', job), tmp_path / 'out', refuse)
    assert steps(folder) == ['scp', 'train', 'scp', 'delete', 'scp', 'train', 'delete']


def test_what_cannot_be_packed_is_not_sent(tools, tmp_path):
    (tmp_path / 'lm').mkdir()
    (tmp_path / 'lm' / 'main.py').touch()
    code = launch.code(str(tmp_path))
    folder, error = keep(tools, tmp_path, [0], ['ACTIVE'], ['READY'], code=code)
    assert error == 'exit code 128'  # git's: it is no checkout
    assert steps(folder) == []


def test_hosts_that_cannot_be_reached_yet_are_no_restart(tools, tmp_path):
    answers = {'scp': [['', 1], ['', 0]], 'queued': [['ACTIVE', 0]], 'list': [['READY', 0]]}
    folder = tools(of=answers)
    job = launch_jobs.job('tpu-vm', max_restarts=0, code=launch_jobs.GIT)
    launch.execute(launch.render('tpu-vm', job), tmp_path / 'out', refuse)
    assert steps(folder) == ['scp', 'scp', 'train', 'delete']


def test_lost_connections_are_limited(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_vm, 'RECONNECTS', 2)
    folder, error = keep(tools, tmp_path, [255], ['ACTIVE'], ['READY'], max_restarts=1)
    assert error == 'exit code 1'
    assert steps(folder) == [*['scp', 'train', 'train', 'train'] * 2, 'delete']
    asked = {words[-1] for words in calls(folder) if 'host.sh' in words[-1]}
    assert len(asked) == 2


@pytest.mark.parametrize('gone', [['', 'ACTIVE', ''], ['', 'ACTIVE', 'SUSPENDED', '']])
def test_a_tpu_that_is_gone_with_the_connection_is_a_restart(gone, tools, tmp_path):
    folder, error = keep(tools, tmp_path, [255], gone, ['READY'], max_restarts=0)
    assert error == 'exit code 1'
    assert steps(folder)[:3] == ['create', 'scp', 'train']
    assert steps(folder).count('create') == 1


def test_restarts_are_limited(tools, tmp_path):
    folder, error = keep(tools, tmp_path, [134], ['ACTIVE'], ['READY'], max_restarts=2)
    assert error == 'exit code 1'
    assert steps(folder) == [*['scp', 'train'] * 3, 'delete']


def test_a_state_that_cannot_be_asked_for_stops_at_once(tools, tmp_path):
    folder = tools(of={'list': [['', 4]]})
    with pytest.raises(RunStopped, match='exit code 4'):
        launch.execute(launch.render('tpu-vm', launch_jobs.job('tpu-vm')), tmp_path / 'out', refuse)
    assert len(calls(folder)) == 1


def test_hosts_get_what_git_tracks_and_the_secrets(tools, tmp_path):
    checkout = tmp_path / 'checkout'
    (checkout / 'lm').mkdir(parents=True)
    for name in ('lm/main.py', 'a b.py', 'untracked.bin'):
        (checkout / name).write_text(name)
    git = ['git', '-C', str(checkout)]
    subprocess.run([*git, 'init', '--quiet'], check=True)
    subprocess.run([*git, 'add', 'lm', 'a b.py'], check=True)
    code = launch.code(str(checkout))
    folder, error = keep(tools, tmp_path, [0], ['ACTIVE'], ['READY'], code=code)
    assert error is None
    with tarfile.open(folder / 'copied' / 'code.tar.gz') as packed:
        assert sorted(packed.getnames()) == ['a b.py', 'lm/main.py']
    secret = folder / 'copied' / 'secrets.sh'
    shown = subprocess.run(
        ['bash', '-c', f'. {secret}; echo "$WANDB_API_KEY"'],
        env={},
        capture_output=True,
        text=True,
    )
    assert shown.stdout == "hunter2's\n"
    for path in (tmp_path / 'out').iterdir():
        assert 'hunter2' not in path.read_text()
    assert 'hunter2' not in (folder / 'calls.jsonl').read_text()


# Stands in for gcloud while it copies: says so, and does not end.
COPIES = """#!/bin/bash
case "$*" in
  *queued*) echo ACTIVE ;;
  *list*) echo READY ;;
  *"HANGS"*) echo there > TOLD; exec sleep 600 ;;
esac
"""
EXECUTES = """
import sys
sys.path[:0] = sys.argv[2:]
import launch_jobs
from lm import launch
job = launch_jobs.job('tpu-vm', code=launch_jobs.GIT)
launch.execute(launch.render('tpu-vm', job), sys.argv[1])
"""


def await_line(fifo: Path, line: str, process: subprocess.Popen) -> None:
    """Returns when a line was written into a FIFO; fails where the process ends without it."""
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)) as told:
        while not select.select([told], [], [], 0.1)[0]:
            assert process.poll() is None
        assert told.readline() == f'{line}\n'


@pytest.mark.first_quick
@pytest.mark.parametrize('everybody', [True, False])
@pytest.mark.parametrize(('what', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize('hangs', ['tpu-vm scp', 'bash lm-gpt2'])
def test_no_secret_stays_here(hangs, what, code, everybody, tools, tmp_path):
    folder, temporary = tools(), tmp_path / 'temporary'
    temporary.mkdir()
    os.mkfifo(tmp_path / 'told')
    stand_in = COPIES.replace('HANGS', hangs).replace('TOLD', str(tmp_path / 'told'))
    (folder / 'gcloud').write_text(stand_in)
    # What is tracked by git cannot be asked where the tests lie in no checkout.
    job = launch_jobs.job('tpu-vm', code=launch_jobs.GIT)
    launch.write(launch.render('tpu-vm', job), tmp_path / 'out')
    command = ['bash', str(tmp_path / 'out' / 'launch.sh')]
    if what == signal.SIGINT:
        command = [sys.executable, '-c', EXECUTES, str(tmp_path / 'out'), *sys.path]
    process = subprocess.Popen(
        command,
        env=os.environ | {'TMPDIR': str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await_line(tmp_path / 'told', 'there', process)
        assert [path.name for path in temporary.glob('*/secrets.sh')] == (
            ['secrets.sh'] if 'scp' in hangs else []
        )
        (os.killpg if everybody else os.kill)(process.pid, what)
        assert process.wait(60) in (code, -what)
        assert not [*temporary.iterdir()]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def host(tmp_path):
    """The folder of a host, with a train.sh that waits until it is told how to end."""
    name = f'test-{os.getpid()}'
    rendered = launch.render('tpu-vm', launch_jobs.job('tpu-vm', name=name))
    (tmp_path / 'host.sh').write_text(rendered.files['host.sh'])
    (tmp_path / 'train.sh').write_text('echo started\nread -r code < tell\nexit "$code"\n')
    os.mkfifo(tmp_path / 'tell')
    yield tmp_path
    Path(f'/dev/shm/lm-{name}.pid').unlink(missing_ok=True)


def look(host: Path, attempt: str) -> subprocess.Popen:
    """Runs host.sh until training says that it runs."""
    process = subprocess.Popen(
        ['bash', str(host / 'host.sh'), attempt],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout.readline() == b'started\n'
    return process


def end(process: subprocess.Popen) -> int:
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.first_quick
@pytest.mark.parametrize('attempt', ['a', 'b'])
@pytest.mark.parametrize(('code', 'ends'), [(2, 102), (77, 77), (255, 254)])
def test_a_host_ends_as_training_ends_whoever_looks_on(host, code, ends, attempt):
    first = look(host, 'a')
    os.killpg(first.pid, signal.SIGKILL)  # The connection is lost; training goes on.
    end(first)
    second = look(host, attempt)
    (host / 'tell').write_text(f'{code}\n')
    assert end(second) == ends
    assert (host / 'train.log').read_text() == 'started\n'


@pytest.mark.slow
def test_a_host_says_how_an_attempt_ended_and_starts_the_next(host):
    first = look(host, 'a')
    (host / 'tell').write_text('75\n')
    assert end(first) == 75
    assert end(look(host, 'a')) == 75  # The connection was lost: it is asked again.
    assert (host / 'train.log').read_text() == 'started\n'
    second = look(host, 'b')
    (host / 'tell').write_text('0\n')
    assert end(second) == 0
    assert (host / 'train.log').read_text() == 'started\n' * 2


@pytest.mark.parametrize('reboots', [True, False])
def test_training_that_was_killed_did_not_lose_the_connection(host, reboots):
    first = look(host, 'a')
    mark = next(Path('/dev/shm').glob(f'lm-test-{os.getpid()}.pid'))
    os.killpg(int(mark.read_text()), signal.SIGKILL)
    assert end(first) == 137
    if reboots:
        mark.unlink()
    assert end(look(host, 'a')) == 137
    assert (host / 'train.log').read_text() == 'started\n'


# ----------------------------------------------------------------------------------------- slurm


@pytest.mark.parametrize(
    ('code', 'restarts', 'again', 'ends'),
    [
        (0, 0, False, 0),
        (2, 0, False, 2),
        (77, 0, True, 0),
        (77, 99, True, 0),
        (75, 2, True, 0),
        (75, 3, False, 75),
        (134, 2, True, 0),
        (134, 3, False, 134),
        (1, 0, True, 0),
    ],
)
def test_a_batch_job_is_queued_again_when_it_helps(tmp_path, code, restarts, again, ends):
    for name, text in (('srun', f'exit {code}'), ('scontrol', 'echo "$@" > asked')):
        (tmp_path / name).write_text(f'#!/bin/sh\ncd {tmp_path}\n{text}\n')
        (tmp_path / name).chmod(0o755)
    rendered = launch.render('slurm', launch_jobs.job('slurm', nodes=2))
    environment = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'SLURM_JOB_ID': '12',
        'WANDB_API_KEY': 'a',
        **({'SLURM_RESTART_COUNT': str(restarts)} if restarts else {}),
    }
    ran = subprocess.run(
        ['bash'],
        input=rendered.files['job.sbatch'],
        text=True,
        env=environment,
        capture_output=True,
    )
    assert ran.returncode == ends, ran.stderr
    asked = tmp_path / 'asked'
    assert asked.exists() == again
    assert not again or asked.read_text() == 'requeue 12\n'


def test_a_batch_job_without_its_secret_says_so():
    rendered = launch.render('slurm', launch_jobs.job('slurm'))
    ran = subprocess.run(
        ['bash'],
        input=rendered.files['job.sbatch'],
        text=True,
        env={'PATH': os.environ['PATH']},
        capture_output=True,
    )
    assert ran.returncode
    assert 'WANDB_API_KEY: is not set' in ran.stderr
