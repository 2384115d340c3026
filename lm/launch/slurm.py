"""Slurm: `sbatch`, one process a node.

    python -m lm.launch slurm --config=configs/gpt2_124m.py --workdir=/shared/runs/gpt2 \\
      --accelerator=h100-8 --nodes=2 --option=--partition=gpu --option=--time=24:00:00 \\
      --setup='source /shared/venv/bin/activate' -- --config.data.batch_size=512

The code is a checkout (--code, by default this folder) on the cluster's file system, the Python is the
one of --setup or of the shell that `sbatch` is called from, and the workdir is on the cluster's file
system too. --option is a line `#SBATCH`. Three minutes before its limit, and when it is preempted, a
job is asked to stop: it saves, and is put into the queue again. Jobs of one --name run one after the
other.

JAX finds the hosts by SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID and SLURM_LOCALID
(jax._src.clusters.slurm_cluster). It would give a process the one GPU of number SLURM_LOCALID: here
JAX_LOCAL_DEVICE_IDS gives it all of its node.
"""

import shlex
from pathlib import Path

from lm.errors import InputError
from lm.launch import job as jobs
from lm.launch.job import Job, Rendered

# Seconds before the limit at which the steps, and not the script, get SIGTERM.
# https://slurm.schedmd.com/sbatch.html
WARNING = 180


def render(job: Job) -> Rendered:
    """Returns the batch script of a job and what submits it.

    Raises:
        InputError: it asks for what Slurm does not have.
    """
    _check(job)
    files = {'job.sbatch': '\n'.join([*_header(job), '', *_body(job), ''])}
    script = '{folder}/job.sbatch'
    return Rendered(
        files=files,
        commands=(('sbatch', '--test-only', script), ('sbatch', script)),
        tools=('sbatch',),
        logs=f'tail -F {job.name}-*.log',
        stop=f'scancel --name={job.name}',
        note=f'Queued again after its limit or a preemption; after a failure {job.max_restarts} times.',
    )


def _check(job: Job) -> None:
    if job.machine.is_tpu:
        raise InputError(
            f"--accelerator = '{job.machine.name}': Slurm has GPUs, such as h100-8. For TPUs: tpu-vm, gke."
        )
    if job.bucket:
        raise InputError(
            f"--workdir = '{job.workdir}': give a folder on the cluster's file system, such as "
            f'/shared/runs/{job.name}.'
        )
    if job.code.kind != 'folder':
        raise InputError(
            f"--code = '{job.code.where}': give a checkout on the cluster, --code=FOLDER."
        )
    for flag, value in (('image', job.image), ('zone', job.zone), ('project', job.project)):
        if value:
            raise InputError(f'--{flag} has no meaning for slurm: leave it out.')
    if job.spot:
        raise InputError(
            '--spot has no meaning for slurm: --option=--qos=... says what is preempted.'
        )


def _header(job: Job) -> list[str]:
    options = [
        f'--job-name={job.name}',
        f'--nodes={job.nodes}',
        '--ntasks-per-node=1',
        f'--gpus-per-node={job.machine.chips}',
        f'--output={job.name}-%j.log',
        '--open-mode=append',
        '--requeue',
        f'--signal=TERM@{WARNING}',
        '--dependency=singleton',
        *([f'--reservation={job.reserved}'] if job.reserved else []),
        *job.options,
    ]
    return ['#!/bin/bash', f'# {jobs.described(job)}', *(f'#SBATCH {option}' for option in options)]


def _body(job: Job) -> list[str]:
    gpus = ','.join(map(str, range(job.machine.chips)))
    final = '|'.join(map(str, (0, *jobs.final_codes(job))))
    return [
        'set -euo pipefail',
        *(f': "${{{name}:?is not set}}"' for name in job.secrets),
        f'cd {shlex.quote(str(Path(job.code.where).resolve()))}',
        *job.setup.splitlines(),
        *jobs.exports(job),
        f'export JAX_LOCAL_DEVICE_IDS={gpus}',
        'code=0',
        f'srun {jobs.training(job)} || code=$?',
        '',
        'restarts=${SLURM_RESTART_COUNT:-0}',
        'echo "Exit code $code after $restarts restarts." >&2',
        'case $code in',
        f'  {final}) exit "$code" ;;',
        f'  {jobs.STOPPED}) scontrol requeue "$SLURM_JOB_ID" ;;',
        f'  *) [ "$restarts" -lt {job.max_restarts} ] || exit "$code"',
        '     scontrol requeue "$SLURM_JOB_ID" ;;',
        'esac',
    ]
