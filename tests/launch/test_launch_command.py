"""`python -m lm.launch`, as a person types it."""

import doctest
import os
import subprocess
import sys

import launch_jobs
import pytest
from command_line import assert_refused

from lm import launch
from lm.launch import __main__ as command

CONFIG = '--config=configs/gpt2_124m.py'
GKE = [
    'gke',
    CONFIG,
    '--workdir=gs://my-bucket/runs/a',
    '--accelerator=v5e-16',
    '--code=https://e.org/lm@1a',
]
SLURM = ['slurm', CONFIG, '--workdir=/shared/a', '--accelerator=h100-8']


def run(*arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, '-m', 'lm.launch', *arguments],
        cwd=launch_jobs.ROOT,
        env=os.environ | {'WANDB_API_KEY': 'hunter2'},
        capture_output=True,
        text=True,
    )
    done.code, done.err, done.out = done.returncode, done.stderr, done.stdout
    return done


def test_nothing_is_run_and_all_is_printed(tmp_path):
    changes = ['--', '--config.data.batch_size=64', "--config.generate.prompts=('a b',)"]
    done = run(*GKE, '--spot', '--secret=WANDB_API_KEY', f'--output={tmp_path / "out"}', *changes)
    assert done.code == 0, done.err
    assert done.err == ''
    [written] = (tmp_path / 'out').iterdir()
    assert written.name == 'jobset.yaml'
    assert written.read_text().rstrip('\n') in done.out
    assert '--config.data.batch_size=64 \\\n' in done.out
    assert """'--config.generate.prompts=('"'"'a b'"'"',)'""" in done.out
    assert f'\nkubectl apply --filename={tmp_path / "out"}/jobset.yaml\n' in done.out
    assert 'Nothing was run. spot v5e-16: 4 hosts of 4 chips, 4x4.' in done.out
    assert 'hunter2' not in done.out


@pytest.mark.parametrize('target', ['', *launch.TARGETS])
def test_help_shows_a_whole_example_that_works(target):
    done = run(*filter(None, [target]), '--help')
    assert done.code == 0
    assert '--accelerator' in done.out
    example = done.out.split('python -m lm.launch ' + (target or 'slurm --config'), 1)[1]
    example = example.split('\n\n')[0].split('A whole')[0].replace('\\\n', ' ')
    import shlex

    words = shlex.split(('--config' if not target else '') + example)
    words = [word for word in words if not word.startswith('--project')]
    shown = run(target or 'slurm', *words)
    assert shown.code == 0, shown.err


@pytest.mark.parametrize(
    ('arguments', 'parts'),
    [
        ([], ['tpu-vm, gke, slurm, skypilot', 'slurm --help']),
        (['slrum', CONFIG], ["the target = 'slrum'", "'slurm'?"]),
        (['gke'], ['--config=FILE', 'configs/gpt2_124m.py']),
        (['gke', CONFIG], ['--workdir=gs://']),
        (['gke', CONFIG, '--workdir=gs://b/a'], ['--accelerator=v5e-16']),
        ([*GKE[:-1], '--acelerator=v5e-16'], ['--acelerator', "'--accelerator'?"]),
        ([*GKE, '--accelerator=v5e-15'], ['v5e-16']),
        ([*GKE, '--', '--config.data.batchsize=4'], ["'config.data.batchsize'", 'data.batch_size']),
        ([*GKE, '--', '--config.data.batch_size=many'], ['many', 'int']),
        ([*GKE, '--', '--mode=evaluate'], ["'--mode=evaluate'", '--config.KEY=VALUE']),
        ([*GKE, '--config.seed=1'], ["behind '--'"]),
        ([*GKE, 'more'], ["'more'"]),
        ([*GKE, '--reserved'], ['--reservation=NAME']),
        ([*SLURM, '--env=A'], ["'A'", 'NAME=VALUE']),
        ([*SLURM, '--env=HF_TOKEN=hunter2'], ['--secret=HF_TOKEN']),
        ([*SLURM, '--secret=HF_TOKEN=hunter2'], ['--secret=WANDB_API_KEY']),
        ([*SLURM, '--secret=NOT_SET_HERE', '--execute'], ['--secret=NOT_SET_HERE']),
        ([*SLURM, '--config=/etc/none.py'], ['/etc/none.py']),
        ([*SLURM, '--max_restarts=-1'], ['max_restarts']),
    ],
)
def test_mistakes_are_one_line(arguments, parts):
    done = run(*arguments)
    assert_refused(done, *parts)
    assert 'hunter2' not in done.err


def test_a_config_outside_of_the_code_is_refused(tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text('from configs.gpt2_124m import get_config\n')
    assert_refused(run(*SLURM, f'--config={config}'), str(config), str(launch_jobs.ROOT))


def test_execute_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'lm.launch', *SLURM, '--execute', f'--output={tmp_path}'],
        cwd=launch_jobs.ROOT,
        env=os.environ | {'PATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'sbatch' is not installed: ")
    assert done.stderr.count('\n') == 1


def test_the_examples_of_the_code():
    assert doctest.testmod(command).failed == 0
