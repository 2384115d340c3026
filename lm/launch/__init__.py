"""Training jobs for the tools that people rent or share machines with: rendered, and run if asked to.

A target is a function from a `Job` to what it is there: files, and the commands that hand them over.
Nothing here talks to a cloud itself, and each host runs `python -m lm.main`.
"""

import shlex
import shutil
import subprocess
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from lm.errors import InputError, RunStopped
from lm.launch import gke, job, skypilot, slurm, tpu_vm
from lm.launch.job import Code, Job, Rendered
from lm.launch.machines import machine
from lm.writer import atomic_write

TARGETS: dict[str, types.ModuleType] = {
    'tpu-vm': tpu_vm,
    'gke': gke,
    'slurm': slurm,
    'skypilot': skypilot,
}

# Where a program comes from that is not there.
PROGRAMS = {
    'gcloud': 'see https://cloud.google.com/sdk/docs/install',
    'git': 'see https://git-scm.com/downloads',
    'kubectl': 'see https://kubernetes.io/docs/tasks/tools/',
    'sbatch': 'it is on the login nodes of a Slurm cluster',
    'sky': "python -m pip install 'skypilot[gcp]'",
}


def code(text: str) -> Code:
    """Returns what `--code` says: a folder, URL@COMMIT, or image:FOLDER.

    Raises:
        InputError: it is none of these, or it holds a password.
    """
    if text.startswith('image:'):
        return Code('image', text[len('image:') :])
    if '://' in text or text.startswith('git@'):
        where, _, commit = text.rpartition('@')
        if ':' in where.partition('://')[2].partition('@')[0].partition('/')[0] and '@' in where:
            raise InputError(
                '--code holds a password, which would be written to files: leave it out.'
            )
        if not where or where == 'git' or '/' in commit or ':' in commit:
            raise InputError(
                f"--code = '{text}' names no commit: write {text}@COMMIT, of what was pushed."
            )
        return Code('git', where, commit)
    if not (Path(text) / 'lm' / 'main.py').is_file():
        raise InputError(
            f"--code = '{text}' is no checkout of this project; give a folder, or URL@COMMIT."
        )
    return Code('folder', text)


def config_in(config: str, source: Code) -> str:
    """Returns the path of a config file as the hosts have it, in the folder of the code.

    Raises:
        InputError: it lies elsewhere.
    """
    folder = Path(source.where if source.kind == 'folder' else '.').resolve()
    path = Path(config).resolve()
    if not path.is_relative_to(folder):
        raise InputError(f"--config = '{config}' is not in the folder of the code, '{folder}'.")
    return path.relative_to(folder).as_posix()


def variables(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Returns names and values of `NAME=VALUE`.

    Raises:
        InputError: there is no '='.
    """
    for text in texts:
        if '=' not in text:
            raise InputError(f"--env = '{text}' is not NAME=VALUE.")
    return tuple((text.partition('=')[0], text.partition('=')[2]) for text in texts)


def render(target: str, what: Job) -> Rendered:
    """Returns the files and commands of a job.

    Args:
        target: a name of TARGETS.
        what: the job.

    Raises:
        InputError: the target cannot run it; what could is named.
    """
    job.check(what)
    return TARGETS[target].render(what)


def commands(rendered: Rendered, folder: str | Path) -> list[list[str]]:
    """Returns the commands with the folder in which the files lie."""
    return [[part.replace('{folder}', str(folder)) for part in each] for each in rendered.commands]


def script(rendered: Rendered, folder: str | Path, title: str) -> str:
    """Returns a script of bash that writes the files and runs the commands: what `execute` does.

    Args:
        rendered: of a job.
        folder: where the files are to lie.
        title: its first lines, as comments.
    """
    end = 'END_OF_FILE'
    told = [f'# {line}' for line in f'{title}\n{rendered.note}'.split('\n')]
    lines = ['#!/usr/bin/env bash', *told, 'set -euo pipefail']
    lines += [f'mkdir -p {shlex.quote(str(folder))}']
    for name, text in rendered.files.items():
        path = shlex.quote(str(Path(folder) / name))
        lines += ['', f"cat > {path} << '{end}'", text.rstrip('\n'), end]
    lines += ['', *map(shlex.join, commands(rendered, folder)), '']
    return '\n'.join([*lines, f'# Logs: {rendered.logs}', f'# Stop: {rendered.stop}', ''])


def write(rendered: Rendered, folder: str | Path) -> None:
    """Writes the files of a job.

    Raises:
        InputError: the system refuses.
    """
    for name, text in rendered.files.items():
        atomic_write(Path(folder) / name, text)


def execute(rendered: Rendered, folder: str | Path, say: Callable[[str], None] = print) -> None:
    """Writes the files and runs the commands, each shown before it runs.

    Args:
        rendered: of a job.
        folder: where the files are to lie.
        say: prints a line for a person.

    Raises:
        InputError: a program is not there; nothing was run.
        RunStopped: a command failed; those after it were not run.
    """
    for program in dict.fromkeys([*rendered.tools, *(each[0] for each in rendered.commands)]):
        if shutil.which(program) is None:
            hint = PROGRAMS.get(program)
            raise InputError(
                f"'{program}' is not installed{f': {hint}' if hint else ''}. Nothing was run."
            )
    write(rendered, folder)
    for command in commands(rendered, folder):
        shown = shlex.join(command)
        say(f'+ {shown}')
        returned = _run(command)
        if returned:
            raise RunStopped(f'exit code {returned} of: {shown}')
    say(f'Logs: {rendered.logs}')
    say(f'Stop: {rendered.stop}')


def _run(command: list[str]) -> int:
    """Returns the exit code of a command; where this one is interrupted, it may clean up first."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


__all__ = ['TARGETS', 'Code', 'Job', 'Rendered', 'execute', 'machine', 'render', 'script', 'write']
