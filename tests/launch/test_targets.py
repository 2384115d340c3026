"""What each target renders, against its tool's own schemas and parsers where they can be had."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import launch_jobs
import pytest
import yaml

from lm import launch, main
from lm.errors import InputError
from lm.launch import gke, skypilot, tpu_vm

JOBS = {target: launch_jobs.accepted(target) for target in launch.TARGETS}
every = pytest.mark.parametrize('target', launch.TARGETS)


def few(*targets: str) -> pytest.MarkDecorator:
    """Slices of one host and of several, one node with GPUs and two: all that scripts differ in."""
    names = ('v5e-4', 'v5e-16', 'tpu7x-128', 'h100-8')
    cases = {
        f'{target} {job.nodes}x{job.machine.name}': (target, job)
        for target in targets
        for job in JOBS[target]
        if job.machine.name in names
    }
    return pytest.mark.parametrize(('target', 'job'), cases.values(), ids=cases)


def documents(target: str, job: launch.Job) -> dict:
    rendered = launch.render(target, job)
    [document] = [yaml.safe_load(t) for n, t in rendered.files.items() if n.endswith('.yaml')]
    return document


def scripts(target: str, job: launch.Job) -> dict[str, str]:
    """The scripts of a job: its files, and those inside YAML."""
    if target == 'gke':
        return {'pod': pod(documents(target, job))['containers'][0]['command'][2]}
    if target == 'skypilot':
        task = documents(target, job)
        return {'setup': task['setup'], 'run': task['run']}
    return launch.render(target, job).files


def pod(jobset: dict) -> dict:
    return jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


def commands(script: str) -> list[list[str]]:
    """The words of each line of a script that trains."""
    joined = script.replace('\\\n', ' ')
    found = [line for line in joined.splitlines() if 'lm.main' in line]
    return [shlex.split(line) for line in found]


# ----------------------------------------------------------------- what all targets have in common


def test_every_machine_is_had_somewhere():
    had = {job.machine.name for jobs in JOBS.values() for job in jobs}
    assert had == set(launch.machines.MACHINES)


@every
def test_hosts_run_the_same_command(target):
    for job in JOBS[target]:
        check_command(target, job)


def check_command(target: str, job: launch.Job) -> None:
    [words] = itertools.chain(*(commands(text) for text in scripts(target, job).values()))
    words = words[words.index('python') :]
    assert words[:3] == ['python', '-m', 'lm.main']
    end = words.index('||') if '||' in words else len(words)
    given = words[3:end]
    assert given[0] == '--config=configs/gpt2_124m.py'
    assert given[1] == f'--workdir={job.path}'
    assert given[-3:] == ['--stopped_code=77', *job.overrides]
    assert ('--distributed' in given) == (job.hosts > 1)
    # Who the others are is said where JAX cannot find out by itself.
    said = [each.partition('=')[0] for each in given if re.match('--(coordinator|process)', each)]
    alone = job.machine.is_tpu or target == 'slurm' or job.hosts == 1
    assert said == ([] if alone else ['--coordinator', '--processes', '--process'])


def test_the_command_is_one_that_lm_main_takes():
    [words] = commands(launch.render('tpu-vm', launch_jobs.job('tpu-vm')).files['train.sh'])
    for word in words[4:]:
        assert word.startswith('--')
        name = word[2:].partition('=')[0]
        assert name.startswith('config.') or name in main.flags.FLAGS


@few(*launch.TARGETS)
def test_scripts_are_bash(target, job):
    for text in scripts(target, job).values():
        checked = subprocess.run(['bash', '-n'], input=text, text=True, capture_output=True)
        assert not checked.returncode + len(checked.stderr), checked.stderr


@few(*launch.TARGETS)
def test_scripts_satisfy_shellcheck(target, job):
    shellcheck = shutil.which('shellcheck') or str(Path(sys.executable).with_name('shellcheck'))
    if not Path(shellcheck).is_file():
        pytest.skip("needs shellcheck: python -m pip install -e '.[test]'")
    asked = [shellcheck, '--shell=bash', '--severity=warning', '-']
    for text in scripts(target, job).values():
        checked = subprocess.run(asked, input=text, text=True, capture_output=True)
        assert not checked.returncode, checked.stdout


@every
def test_a_rendered_job_is_pure_and_whole(target):
    for job in JOBS[target]:
        rendered = launch.render(target, job)
        assert rendered == launch.render(target, job)
        assert rendered.logs
        assert rendered.stop
        whole = '\n'.join(rendered.files.values())
        assert not re.search('@[A-Z]+@|NAME', whole), 'what was to be filled in'
        assert 'spot' in whole or not job.spot
        assert {each[0] for each in rendered.commands} <= {*rendered.tools, 'bash'}
        assert set(rendered.tools) <= set(launch.PROGRAMS)


@every
def test_what_is_said_reaches_the_hosts(target):
    job = launch_jobs.job(
        target, setup='source /opt/here/activate\nulimit -n 4096', max_restarts=17
    )
    text = '\n'.join(scripts(target, job).values())
    assert 'source /opt/here/activate\n' in text
    assert 'ulimit -n 4096\n' in text
    assert 'pip install' not in text
    files = '\n'.join(launch.render(target, job).files.values())
    assert '17' in files
    assert 'PLAIN' in files
    assert 'a $b' in files
    option = launch_jobs.job(target, options=('--namespace=research',))
    rendered = launch.render(target, option)
    said = ' '.join([*rendered.files.values(), *itertools.chain(*rendered.commands)])
    assert '--namespace=research' in said


@pytest.mark.parametrize('target', ['tpu-vm', 'gke', 'skypilot'])
def test_buckets_are_mounted_where_the_workdir_is(target):
    job = launch_jobs.job(target)
    assert job.path == '/mnt/lm/my-bucket/runs/gpt2'
    files = '\n'.join(launch.render(target, job).files.values())
    assert '/mnt/lm/my-bucket\n' in files or '/mnt/lm/my-bucket:\n' in files
    if target != 'skypilot':  # Which mounts with its own options.
        assert re.search(r'rename-dir-limit[=:]\d{5}', files)
        assert re.search(r'ttl-secs[=:]0', files)


def test_exit_codes_that_a_restart_would_repeat():
    alone = launch_jobs.job('gke', machine=launch.machine('v5e-4'))
    several = launch_jobs.job('gke')
    assert launch.job.final_codes(alone) == (1, 2)
    assert launch.job.final_codes(several) == (2,)
    rules = gke.jobset(several)['spec']['replicatedJobs'][0]['template']['spec']
    assert rules['podFailurePolicy']['rules'][1]['onExitCodes']['values'] == [2]
    assert '  0 | 102)' in tpu_vm.render(launch_jobs.job('tpu-vm')).files['launch.sh']


# --------------------------------------------------------------------------------------- schemas


@few('gke')
def test_jobsets_are_of_the_api(target, job):
    """A field that the API's model does not know is lost on the way through it."""
    models = pytest.importorskip('kubeflow_trainer_api.models', reason="pip install -e '.[test]'")
    document = documents(target, job)
    job_set = models.JobsetV1alpha2JobSet.from_dict(document)
    assert job_set.to_dict() == document
    assert job_set.spec.replicated_jobs[0].template.spec.completions == job.hosts


@few('gke')
def test_jobs_and_pods_are_of_kubernetes(target, job):
    validate = pytest.importorskip('kubernetes_validate', reason='pip install kubernetes-validate')
    template = documents(target, job)['spec']['replicatedJobs'][0]['template']
    document = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'a'}, **template}
    for version in ('1.31', validate.latest_version()):
        validate.validate(document, version, strict=True)


def test_pods_ask_for_whole_hosts_of_the_slice():
    jobset = gke.jobset(launch_jobs.job('gke', machine=launch.machine('v6e-64'), spot=True))
    spec = jobset['spec']['replicatedJobs'][0]['template']['spec']
    assert (spec['completions'], spec['parallelism'], spec['backoffLimit']) == (16, 16, 0)
    assert pod(jobset)['containers'][0]['resources']['limits'] == {'google.com/tpu': 4}
    assert pod(jobset)['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': 'tpu-v6e-slice',
        'cloud.google.com/gke-tpu-topology': '8x8',
        'cloud.google.com/gke-spot': 'true',
    }
    assert 'exclusive-topology' in str(jobset['metadata'])


def test_pods_with_gpus_know_the_first_one():
    """JobSet: <jobset>-<replicatedJob>-<job>-<pod>.<subdomain>, the subdomain being the JobSet's name."""
    jobset = gke.jobset(launch_jobs.job('gke', machine=launch.machine('h200-8'), nodes=3))
    [words] = commands(pod(jobset)['containers'][0]['command'][2])
    assert '--coordinator=gpt2-hosts-0-0.gpt2:8476' in words
    assert '--processes=3' in words
    assert '--process=$JOB_COMPLETION_INDEX' in words
    assert pod(jobset)['containers'][0]['resources']['limits'] == {'nvidia.com/gpu': 8}


@few('skypilot')
def test_tasks_are_of_skypilot(target, job):
    sky = pytest.importorskip('sky', reason="pip install 'skypilot'")
    secrets = [('WANDB_API_KEY', 'any')]
    task = sky.Task.from_yaml_config(skypilot.task(job), secrets_overrides=secrets)
    [resources] = task.resources
    assert task.num_nodes == job.nodes
    assert resources.use_spot
    name, _, count = job.machine.skypilot.partition(':')
    assert resources.accelerators == {name: int(count or 1)}


def test_batch_scripts_have_their_options_before_any_command():
    job = launch_jobs.job('slurm', nodes=2, options=('--time=24:00:00',), reserved='ours')
    lines = launch.render('slurm', job).files['job.sbatch'].splitlines()
    assert lines[0] == '#!/bin/bash'
    first = lines.index('set -euo pipefail')
    options = [line.removeprefix('#SBATCH ') for line in lines[:first] if '#SBATCH' in line]
    assert not any('#SBATCH' in line for line in lines[first:])
    assert {'--nodes=2', '--ntasks-per-node=1', '--gpus-per-node=8', '--requeue'} <= set(options)
    assert {'--time=24:00:00', '--reservation=ours', '--signal=TERM@180'} <= set(options)
    assert 'export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7' in lines


# ------------------------------------------------------------------------------------ bad input

WRONG = [
    ('tpu-vm', {'machine': 'h100-8'}, 'no TPU: use slurm, gke or skypilot'),
    ('tpu-vm', {'machine': 'tpu7x-8'}, 'use gke'),
    ('tpu-vm', {'zone': ''}, '--zone=us-central1-a'),
    ('tpu-vm', {'nodes': 2}, 'try v5e-32'),
    ('tpu-vm', {'spot': True, 'reserved': 'a'}, '--spot and --reserved'),
    ('tpu-vm', {'image': 'python:3.12'}, '--code='),
    ('tpu-vm', {'workdir': '/home/me/runs/a'}, 'gs://BUCKET/runs/gpt2'),
    ('tpu-vm', {'workdir': 'runs/a'}, 'gs://BUCKET/runs/a'),
    ('tpu-vm', {'workdir': 's3://bucket/a'}, 'gs://BUCKET/PATH'),
    ('tpu-vm', {'workdir': 'gs://bucket'}, 'gs://BUCKET/PATH'),
    ('tpu-vm', {'name': 'GPT_2'}, "such as 'gpt-2'"),
    ('tpu-vm', {'name': ''}, "such as 'train'"),
    ('gke', {'machine': 'h200-4'}, 'h200-8 is'),
    ('gke', {'code': launch.Code('folder', '.')}, 'URL@COMMIT'),
    ('gke', {'code': launch.Code('image', '/lm')}, '--image=IMAGE'),
    ('gke', {'zone': 'us-west4-a'}, 'get-credentials'),
    ('slurm', {'machine': 'v5e-16'}, 'tpu-vm, gke'),
    ('slurm', {'workdir': 'gs://bucket/a'}, '/shared/runs/gpt2'),
    ('slurm', {'code': launch_jobs.GIT}, '--code=FOLDER'),
    ('slurm', {'spot': True}, '--qos'),
    ('slurm', {'nodes': 0}, 'at least 1'),
    ('skypilot', {'machine': 'tpu7x-8'}, 'use gke'),
    ('skypilot', {'reserved': 'a'}, '--reserved'),
    ('skypilot', {'env': (('HF_TOKEN', 'abc'),)}, '--secret=HF_TOKEN'),
    ('skypilot', {'env': (('A B', 'abc'),)}, 'NAME=VALUE'),
]


@pytest.mark.parametrize(('target', 'changes', 'right'), WRONG)
def test_what_cannot_run_names_what_can(target, changes, right):
    if isinstance(changes.get('machine'), str):
        changes = changes | {'machine': launch.machine(changes['machine'])}
    with pytest.raises(InputError) as raised:
        launch.render(target, launch_jobs.job(target, **changes))
    assert right in str(raised.value)
    assert '\n' not in str(raised.value)
    assert 'abc' not in str(raised.value)


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('https://example.org/lm@4f2a9c1', ('git', 'https://example.org/lm', '4f2a9c1')),
        ('git@github.com:me/lm@v1.0', ('git', 'git@github.com:me/lm', 'v1.0')),
        ('image:/opt/lm', ('image', '/opt/lm', '')),
        (str(launch_jobs.ROOT), ('folder', str(launch_jobs.ROOT), '')),
    ],
)
def test_where_the_code_is(text, code):
    assert launch.code(text) == launch.Code(*code)


@pytest.mark.parametrize(
    ('text', 'right'),
    [
        ('https://example.org/lm', 'https://example.org/lm@COMMIT'),
        ('git@github.com:me/lm', '@COMMIT'),
        ('https://me:hunter2@example.org/lm@4f2a9c1', 'password'),
        ('/tmp', 'give a folder'),
    ],
)
def test_where_the_code_is_not(text, right):
    with pytest.raises(InputError) as raised:
        launch.code(text)
    assert right in str(raised.value)
    assert 'hunter2' not in str(raised.value)
