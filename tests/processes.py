"""Several processes of one run, as several hosts have them: started together, and none left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# Most of the time of a test is compilation, which takes a third of the time unoptimised, and with
# the older of two ways to make kernels of what is fused.
QUICK = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_use_fusion_emitters=false'
)
# What a loaded machine takes for a start, and then some.
LIMIT = 900.0


class End(NamedTuple):
    """How a process ended: its exit code (minus the signal), and what it wrote."""

    code: int
    out: str
    err: str


def environment(devices: int, flags: str) -> dict[str, str]:
    """Returns the environment of a process on so many virtual devices, with flags of XLA.

    What one has compiled the others find, so that a start takes seconds.
    """
    return os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(devices),
        'XLA_FLAGS': flags,
        'JAX_COMPILATION_CACHE_DIR': os.environ['LM_TEST_PROGRAMS'],
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }


class Processes:
    """Processes with files for what they write. A context manager; all are killed at its end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._all: list[subprocess.Popen] = []

    def start(self, command: list[str], devices: int = 1, prefix: tuple[str, ...] = ()) -> int:
        """Starts a Python program on so many virtual devices; returns its number."""
        number = len(self._all)
        with (
            open(self._path(number, 'out'), 'wb') as out,
            open(self._path(number, 'err'), 'wb') as err,
        ):
            process = subprocess.Popen(
                [*prefix, sys.executable, *command],
                cwd=ROOT,
                env=environment(devices, QUICK) | {'TF_CPP_MIN_LOG_LEVEL': '2'},
                stdout=out,
                stderr=err,
            )
        self._all.append(process)
        return number

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / f'{number}.{kind}'

    def signal(self, number: int, what: signal.Signals) -> None:
        """Sends a signal to one."""
        self._all[number].send_signal(what)

    def end(self, number: int, limit: float = LIMIT) -> End:
        """Returns how one ended, when it has.

        Raises:
            subprocess.TimeoutExpired: it has not, within so many seconds.
        """
        code = self._all[number].wait(limit)
        return End(code, *(self._path(number, kind).read_text() for kind in ('out', 'err')))

    def await_text(self, number: int, text: str) -> None:
        """Returns when one has written a text."""
        self.await_that(number, lambda: text in self._path(number, 'out').read_text())

    def await_that(self, number: int, condition: Callable[[], bool]) -> None:
        """Returns when a condition holds, which one brings about."""
        until = time.monotonic() + LIMIT
        while not condition():
            assert self._all[number].poll() is None, self.end(number)
            assert time.monotonic() < until
            time.sleep(0.02)

    def __enter__(self) -> 'Processes':
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def free_address() -> str:
    """Returns an address at which two ports were free a moment ago."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(('127.0.0.1', 0))
            try:
                next_one.bind(('127.0.0.1', one.getsockname()[1] + 1))
            except OSError:
                continue
            return f'127.0.0.1:{one.getsockname()[1]}'
