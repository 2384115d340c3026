"""SkyPilot: a managed job, on whatever cloud, region or cluster has the machine.

    python -m lm.launch skypilot --config=configs/gpt2_124m.py --workdir=gs://my-bucket/runs/gpt2 \\
      --accelerator=h100-8 --nodes=2 --spot -- --config.data.batch_size=512

The bucket must exist; SkyPilot mounts it on every host (gcsfuse). --code is a folder (this one by
default), of which SkyPilot leaves out what .gitignore or .skyignore names, or URL@COMMIT. --option is
passed on to `sky jobs launch`, such as --option=--infra=gcp/us-central1. A job whose hosts are taken
away is started again elsewhere (https://docs.skypilot.co/en/latest/examples/managed-jobs.html).

Of TPUs JAX finds the hosts by the metadata of the machine. Of GPUs the first of $SKYPILOT_NODE_IPS is
given, and $SKYPILOT_NODE_RANK says which one each is.
"""

from pathlib import Path
from typing import Any

from lm.errors import InputError
from lm.launch import job as jobs
from lm.launch.job import Job, Rendered


def render(job: Job) -> Rendered:
    """Returns the task of a job and what launches it.

    Raises:
        InputError: SkyPilot has no such machine, or the workdir would be lost with it.
    """
    _check(job)
    secrets = tuple(f'--secret={name}' for name in job.secrets)
    launch = ('sky', 'jobs', 'launch', '--yes', '--detach-run', *secrets, *job.options)
    dry = ('sky', 'launch', '--dryrun', '--yes', *secrets, *job.options)
    return Rendered(
        files={'task.yaml': jobs.as_yaml(task(job))},
        commands=((*dry, '{folder}/task.yaml'), (*launch, '{folder}/task.yaml')),
        tools=('sky',),
        logs=f'sky jobs logs --name {job.name}',
        stop=f'sky jobs cancel --yes --name {job.name}',
        note=f'It is started again when hosts are taken away; after a failure {job.max_restarts} times.',
    )


def _check(job: Job) -> None:
    if not job.machine.skypilot:
        raise InputError(
            f"--accelerator = '{job.machine.name}' is not in SkyPilot's catalog: use gke."
        )
    if job.code.kind == 'image':
        raise InputError('--code=image:FOLDER is for gke: give a folder or URL@COMMIT.')
    if job.reserved:
        raise InputError(
            '--reserved is a matter of ~/.sky/config.yaml: gcp.specific_reservations. Leave it out.'
        )
    if job.project:
        raise InputError("--project is the one of SkyPilot's credentials: leave it out.")
    jobs.no_folder_here(job, 'SkyPilot')


def task(job: Job) -> dict[str, Any]:
    """Returns the task. Fields: https://docs.skypilot.co/en/latest/reference/yaml-spec.html"""
    resources = {
        'accelerators': job.machine.skypilot,
        'use_spot': job.spot,
        'job_recovery': {
            'max_restarts_on_errors': job.max_restarts,
            'recover_on_exit_codes': [jobs.STOPPED],
        },
    }
    if job.machine.is_tpu:
        resources['accelerator_args'] = {'runtime_version': job.machine.runtime}
    if job.zone:
        resources['infra'] = f'gcp/*/{job.zone}'
    if job.image:
        resources['image_id'] = f'docker:{job.image}'
    folder = '.' if job.code.kind == 'folder' else 'code'
    install = [] if job.code.kind == 'folder' else jobs.checkout(job, folder)
    own = job.setup.splitlines() or jobs.own_python(job, folder, '$HOME/lm-environment')
    # What a line of `setup` sets is not there in `run`: both begin with the same lines.
    setup = ['set -euo pipefail', *install, *own]
    run = [*setup, *([] if folder == '.' else [f'cd {folder}']), *_run(job)]
    return {
        'name': job.name,
        **({'workdir': str(Path(job.code.where).resolve())} if job.code.kind == 'folder' else {}),
        'num_nodes': job.nodes,
        'resources': resources,
        **({'envs': dict(job.env)} if job.env else {}),
        **({'secrets': dict.fromkeys(job.secrets)} if job.secrets else {}),
        **({'file_mounts': _mounts(job)} if job.bucket else {}),
        'setup': '\n'.join(setup),
        'run': '\n'.join(run),
    }


def _mounts(job: Job) -> dict[str, Any]:
    return {f'{jobs.MOUNTS}/{job.bucket}': {'source': f'gs://{job.bucket}', 'mode': 'MOUNT'}}


def _run(job: Job) -> list[str]:
    if job.machine.is_tpu or job.hosts == 1:
        return [jobs.training(job)]
    who = (
        f'--coordinator="$first:{jobs.PORT}"',
        '--processes="$SKYPILOT_NUM_NODES"',
        '--process="$SKYPILOT_NODE_RANK"',
    )
    return ['first=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")', jobs.training(job, *who)]
