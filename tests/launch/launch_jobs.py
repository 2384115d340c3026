"""Jobs for the tests of `lm.launch`: one that each target takes."""

import dataclasses
from pathlib import Path

from lm import launch

ROOT = Path(__file__).parent.parent.parent
BUCKET, SHARED = 'gs://my-bucket/runs/gpt2', '/shared/runs/gpt2'
GIT = launch.Code('git', 'https://example.org/lm', '4f2a9c1')
FOLDER = launch.Code('folder', str(ROOT))

# What differs from the job below.
TAKEN = {
    'tpu-vm': {'machine': launch.machine('v5e-16'), 'zone': 'us-west4-a', 'code': FOLDER},
    'gke': {'machine': launch.machine('v5e-16')},
    'slurm': {'machine': launch.machine('h100-8'), 'workdir': SHARED, 'code': FOLDER},
    'skypilot': {'machine': launch.machine('v5e-16')},
}


def job(target: str, **changes: object) -> launch.Job:
    plain = launch.Job(
        name='gpt2',
        config='configs/gpt2_124m.py',
        workdir=BUCKET,
        overrides=('--config.seed=7', "--config.generate.prompts=('a b',)"),
        machine=launch.machine('v5e-16'),
        nodes=1,
        code=GIT,
        image='',
        setup='',
        env=(('PLAIN', 'a $b'),),
        secrets=('WANDB_API_KEY',),
        spot=False,
        reserved='',
        zone='',
        project='',
        max_restarts=3,
        options=(),
    )
    return dataclasses.replace(plain, **(TAKEN[target] | changes))


def accepted(target: str) -> list[launch.Job]:
    """Returns jobs of all machines that a target has, spot where it can be."""
    found = []
    for machine in launch.machines.MACHINES.values():
        for nodes in (1,) if machine.is_tpu else (1, 2):
            each = job(target, machine=machine, nodes=nodes, spot=target != 'slurm')
            try:
                launch.render(target, each)
            except launch.InputError:
                continue
            found.append(each)
    return found


def snapshot(folder: Path) -> dict[str, str]:
    """Returns the text of each file of a folder."""
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}
