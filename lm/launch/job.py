"""A training job, and the lines of shell that its hosts run, whatever started them."""

import dataclasses
import re
import shlex
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import yaml

from lm.errors import InputError
from lm.launch.machines import Machine

# The exit code of a run that was asked to stop (SIGTERM) before its last step: the same command goes on
# from there, however often. None that fails has it, nor one that lost another host (`lm.errors.TRY_AGAIN`).
STOPPED = 77

# Where buckets are mounted on each host.
MOUNTS = '/mnt/lm'

# What a mounted bucket must do for several hosts that write checkpoints: show what others have written
# at once (caches are infinite by default on large machines), and rename folders that are not empty, by
# default none. https://github.com/GoogleCloudPlatform/gcsfuse/blob/master/docs/semantics.md
RENAMES = 200_000

# Hosts meet at a port of the first one.
PORT = 8476


class Code(NamedTuple):
    """Where the hosts get this project from.

    Attributes:
        kind: 'folder' (copied), 'git' (cloned) or 'image' (it is installed there already).
        where: a folder here, a URL, or the folder in the image.
        commit: of git, what is checked out.
    """

    kind: str
    where: str
    commit: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
    """What to train, on what, and what to do when it is taken away.

    Attributes:
        name: of the job, in the tool that runs it: small letters, digits and '-'.
        config: config file, in the folder of the code.
        workdir: folder that all hosts share: a path, or gs://BUCKET/PATH.
        overrides: such as '--config.train.steps=500'.
        machine: what each node is, or the slice.
        nodes: of GPUs; 1 of TPUs.
        code: where the hosts get it.
        image: of containers.
        setup: lines of shell before training, in place of the installation; '' is the installation.
        env: names and values, visible in what is rendered.
        secrets: names of environment variables whose values are never rendered.
        spot: to be had cheaper, and taken away at any time.
        reserved: of capacity that was reserved; a reservation's name where the tool asks for one.
        zone, project: of Google Cloud.
        max_restarts: starts after the first one, when hosts fail or are taken away.
        options: passed on to the tool.
    """

    name: str
    config: str
    workdir: str
    overrides: tuple[str, ...]
    machine: Machine
    nodes: int
    code: Code
    image: str
    setup: str
    env: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]
    spot: bool
    reserved: str
    zone: str
    project: str
    max_restarts: int
    options: tuple[str, ...]

    @property
    def hosts(self) -> int:
        return self.machine.hosts * self.nodes

    @property
    def bucket(self) -> str:
        """The bucket of the workdir, or ''."""
        return self.workdir[len('gs://') :].split('/')[0] if '://' in self.workdir else ''

    @property
    def path(self) -> str:
        """The workdir as the hosts see it."""
        return f'{MOUNTS}/{self.workdir[len("gs://") :]}' if self.bucket else self.workdir


class Rendered(NamedTuple):
    """What a job is for a tool.

    Attributes:
        files: their text, by name in the folder of the job.
        commands: with '{folder}' for that folder; run one after the other, while each succeeds.
        tools: programs that they need.
        logs, stop: commands for a person.
        note: lines on what happens when hosts are taken away.
    """

    files: dict[str, str]
    commands: tuple[tuple[str, ...], ...]
    tools: tuple[str, ...]
    logs: str
    stop: str
    note: str


def check(job: Job) -> None:
    """Raises InputError for what no tool can run."""
    if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', job.name):
        near = re.sub(r'[^a-z0-9]+', '-', job.name.lower()).lstrip('-0123456789')[:40].strip('-')
        raise InputError(
            f"--name = '{job.name}' cannot be: at most 40 small letters, digits and '-', a letter first, "
            f"such as '{near or 'train'}'."
        )
    if job.nodes < 1 or (job.machine.is_tpu and job.nodes != 1):
        larger = f'{job.machine.chip}-{job.nodes * int(job.machine.name.rpartition("-")[2])}'
        hint = f'--accelerator says how many hosts of TPUs there are; try {larger}.'
        raise InputError(f'--nodes = {job.nodes}: {hint if job.machine.is_tpu else "at least 1."}')
    if job.spot and job.reserved:
        raise InputError('--spot and --reserved exclude each other: leave one out.')
    _check_workdir(job)
    for name, _ in job.env:
        if not re.fullmatch(r'[A-Za-z_]\w*', name):
            raise InputError(f'--env={name}=... is no name of a variable; it is NAME=VALUE.')
        if re.search(r'TOKEN|SECRET|PASSWORD|CREDENTIAL|(^|_)KEY$', name.upper()):
            raise InputError(
                f'--env={name}=... would be written to files: give --secret={name}, whose value is taken '
                'from the environment.'
            )

    for name in job.secrets:
        if not re.fullmatch(r'[A-Za-z_]\w*', name):
            raise InputError(
                '--secret is the name of a variable alone, --secret=WANDB_API_KEY; its value is taken '
                'from the environment.'
            )


def _check_workdir(job: Job) -> None:
    scheme = job.workdir.partition('://')[0] if '://' in job.workdir else ''
    if scheme and (
        scheme != 'gs' or not re.fullmatch(r'gs://[a-z0-9][\w.-]+(/[^/]+)+/?', job.workdir)
    ):
        raise InputError(
            f"--workdir = '{job.workdir}' is neither gs://BUCKET/PATH nor a path that all hosts see."
        )
    if not scheme and not PurePosixPath(job.workdir).is_absolute():
        raise InputError(
            f"--workdir = '{job.workdir}' must be the same folder on all hosts, also after a restart: give "
            f'gs://BUCKET/{job.workdir}, or a whole path such as /shared/{job.workdir}.'
        )


def no_folder_here(job: Job, tool: str) -> None:
    """Raises InputError for a workdir on the disk of machines that are taken away."""
    if not job.bucket and not job.setup:
        raise InputError(
            f"--workdir = '{job.workdir}' would be on the disk of a machine that {tool} deletes: give "
            f'gs://BUCKET/runs/{job.name}, or mount what is shared by --setup.'
        )


def on_google_cloud(job: Job, tool: str) -> None:
    """Raises InputError where the zone is missing."""
    if not job.zone:
        raise InputError(f'{tool} needs --zone=ZONE, such as --zone=us-central1-a.')


def final_codes(job: Job) -> tuple[int, ...]:
    """Returns the exit codes after which a restart would end in the same way.

    2 is what a person got wrong. 1 is a bug or a run that diverged, but of several hosts also how one may
    end that was the first to note that its neighbour was taken away.
    """
    return (1, 2) if job.hosts == 1 else (2,)


def training(job: Job, *hosts: str) -> str:
    """Returns the command that each host runs, a part a line.

    Args:
        job: what to train.
        hosts: flags that say who the others are, where `--distributed` alone cannot find out; not quoted,
            since they may hold variables.
    """
    parts = [
        'python -m lm.main',
        f'--config={shlex.quote(job.config)}',
        f'--workdir={shlex.quote(job.path)}',
        *(['--distributed', *hosts] if job.hosts > 1 else []),
        f'--stopped_code={STOPPED}',
        *map(shlex.quote, job.overrides),
    ]
    return ' \\\n  '.join(parts)


def exports(job: Job) -> list[str]:
    """Returns lines that set the environment."""
    return [f'export {name}={shlex.quote(value)}' for name, value in job.env]


def extra(job: Job) -> str:
    """Returns the extra of setup.py with JAX for the machine."""
    return 'tpu' if job.machine.is_tpu else 'cuda12'


def checkout(job: Job, folder: str) -> list[str]:
    """Returns lines that put a clone of `job.code` into a folder, once."""
    where, commit = shlex.quote(job.code.where), shlex.quote(job.code.commit)
    return [
        f'[ -d {folder}/.git ] || git clone --quiet {where} {folder}',
        f'git -C {folder} checkout --quiet {commit}',
    ]


def own_python(job: Job, folder: str, environment: str) -> list[str]:
    """Returns lines that install the project into an environment of its own, whose Python is first.

    The Python of machine images may be older than 3.11: uv brings one.
    """
    return [
        'export PATH="$HOME/.local/bin:$PATH"',
        'command -v uv > /dev/null || python3 -m pip install --quiet --user uv',
        f'[ -d "{environment}" ] || uv venv --quiet --python 3.12 "{environment}"',
        f'export PATH="{environment}/bin:$PATH"',
        f'uv pip install --quiet --python "{environment}/bin/python" -e "{folder}[{extra(job)}]"',
    ]


def mounting(job: Job) -> list[str]:
    """Returns lines that mount the bucket of the workdir by gcsfuse, and install that if need be.

    https://cloud.google.com/storage/docs/cloud-storage-fuse/install
    """
    if not job.bucket:
        return []
    folder = f'{MOUNTS}/{job.bucket}'
    keys, packages = '/usr/share/keyrings/cloud.google.asc', 'https://packages.cloud.google.com/apt'
    return [
        'if ! command -v gcsfuse > /dev/null; then',
        f'  curl -fsS {packages}/doc/apt-key.gpg | sudo tee {keys} > /dev/null',
        f'  echo "deb [signed-by={keys}] {packages} gcsfuse-$(lsb_release -cs) main" |',
        '    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null',
        '  sudo apt-get update -qq',
        '  sudo apt-get install -qq -y fuse gcsfuse > /dev/null',
        'fi',
        f'sudo mkdir -p {folder}',
        f'sudo chown "$USER" {folder}',
        f'mountpoint -q {folder} || gcsfuse --implicit-dirs --rename-dir-limit={RENAMES} \\',
        f'  --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 {job.bucket} {folder}',
    ]


class _Yaml(yaml.SafeDumper):
    """Writes scripts as they are, and everything where it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '|' if '\n' in text else None
    return dumper.represent_scalar('tag:yaml.org,2002:str', text, style)


_Yaml.add_representer(str, _text)


def as_yaml(value: Any) -> str:
    """Returns YAML, in the order of the dicts."""
    return yaml.dump(value, Dumper=_Yaml, sort_keys=False, width=1000)


def described(job: Job) -> str:
    """Returns a line on what the job asks for."""
    machine = job.machine
    kind = 'spot ' if job.spot else 'reserved ' if job.reserved else ''
    if not machine.is_tpu:
        return f'{job.nodes} {kind}node(s) of {machine.chips} {machine.chip.upper()}'
    count = f'{job.hosts} host{"s" if job.hosts > 1 else ""} of {machine.chips_per_host} chips'
    return f'{kind}{machine.name}: {count}, {machine.topology}'
