"""Where a run ran: versions, processor, devices, commit, command."""

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


# What Linux has where there is an accelerator: NVIDIA's, AMD's, Google's.
_DEVICES = ('nvidia*', 'nvhost*', 'dxg', 'kfd', 'accel*', 'vfio/[0-9]*')


def only_cpu_where_nothing_else_is() -> None:
    """Tells JAX to look for no accelerator where compilers for them are installed, and none of them is.

    It would complain of each, at length. To be called before JAX is imported; `JAX_PLATFORMS` wins.
    """
    compilers = [name for name in ('libtpu', 'jax_cuda12_plugin') if importlib.util.find_spec(name)]
    told = any(name == 'JAX_PLATFORMS' or name.startswith('TPU_') for name in os.environ)
    there = any(found for pattern in _DEVICES for found in Path('/dev').glob(pattern))
    if sys.platform == 'linux' and compilers and not told and not there:
        os.environ['JAX_PLATFORMS'] = 'cpu'


def environment() -> dict[str, Any]:
    """Returns where the run ran: versions, processor, devices, commit, command. Never raises."""
    import jax

    try:
        devices = jax.devices()
        found = {
            'device': devices[0].device_kind,
            'devices': len(devices),
            'hosts': jax.process_count(),
            'backend': jax.default_backend(),
        }
    except RuntimeError as error:  # No device can be opened.
        found = {'device': f'none: {error}'}
    flags = {
        name: os.environ[name] for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS') if name in os.environ
    }
    return {**found, **host(_PACKAGES), **flags}


def host(packages: Iterable[str]) -> dict[str, Any]:
    """Returns processor, versions of packages, commit and command, without JAX. Never raises."""
    return {
        'cpu': _cpu(),
        'cores': cores(),
        'platform': platform.platform(),
        'python': platform.python_version(),
        **{package: _version(package) for package in packages},
        **_commit(Path(__file__).resolve().parent.parent),
        'command': shlex.join([Path(sys.executable or 'python').name, *sys.orig_argv[1:]]),
    }


def cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _cpu() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(project: Path) -> dict[str, Any]:
    """The commit, where the project is the root of a checkout; not that of a folder around it."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(project), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        if Path(git('rev-parse', '--show-toplevel')).resolve() != project:
            return {}
        changed = git('status', '--porcelain', '--untracked-files=no') != ''
        return {'commit': git('rev-parse', 'HEAD'), 'uncommitted_changes': changed}
    except (OSError, subprocess.SubprocessError):
        return {}
