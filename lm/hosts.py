"""Several processes for one run: how they find each other, and what they must agree on.

`joined` is around the work of a process. Inside of it `jax.devices()` are those of all processes, and they
watch over each other (`lm.watch`): none waits for one that has died, hangs, ended with an error or runs
something else. Without it all functions here do nothing, as there is nobody else.
"""

import contextlib
import hashlib
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from lm import command, watch
from lm.errors import InputError, TryAgain
from lm.watch import Limits, Place

# What collectives and JAX's own messages say when it is another process that is gone.
_OTHERS = ('Gloo', 'onnection', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'NCCL', 'heartbeat')

_member: watch.Member | None = None
_folder: Path | None = None


def find(address: str, count: int | None, index: int | None, limits: Limits) -> tuple[Place, Any]:
    """Returns which process this is.

    What is not said is as `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` have it, or
    else as TPU pods, Slurm, Kubernetes or Open MPI do.

    Args:
        address: `HOST:PORT` of process 0; '' is not said.
        count: of processes; None is not said.
        index: of this process; None is not said.
        limits: how long process 0's address is looked for.

    Returns:
        The place, and the devices that are this process's (None: all of its host).

    Raises:
        InputError: something is not said, and cannot be found out.
        TryAgain: what would say it does not answer in time.
    """
    from jax._src.clusters import ClusterEnv  # What `jax.distributed.initialize` asks.

    address = address or os.environ.get('JAX_COORDINATOR_ADDRESS', '')
    count = _number('JAX_NUM_PROCESSES') if count is None else count
    index = _number('JAX_PROCESS_ID') if index is None else index
    try:
        asked = address or None, count, index, _devices(), None, int(limits.join)
        *found, devices = ClusterEnv.auto_detect_unset_distributed_params(*asked)
    except (RuntimeError, OSError) as error:  # It does not answer, or knows no such host yet.
        raise TryAgain(f'--distributed: {" ".join(str(error).split())}') from None
    except Exception as error:  # Whatever else a cluster's own interface raises.
        raise InputError(f'--distributed: {" ".join(str(error).split())}') from None
    flags = ('coordinator=HOST:PORT', 'processes=N', 'process=I')
    missing = [f'--{flag}' for flag, value in zip(flags, found, strict=True) if value is None]
    if missing:
        raise InputError(
            f'--distributed finds no TPU pod, Slurm, Kubernetes or Open MPI here: give {" ".join(missing)}.'
        )
    place = Place(*found)
    host, _, port = place.address.rpartition(':')
    if not host or not port.isdigit():
        raise InputError(f'--coordinator={place.address} is no HOST:PORT, such as node0:1234.')
    if not 0 <= place.index < place.count:
        raise InputError(
            f'--process={place.index} of --processes={place.count}: they are 0 to {place.count - 1}.'
        )
    return place, devices


def _devices() -> list[int] | None:
    """Returns the devices that this process is told to take; None: those that the cluster says, or all."""
    told = os.environ.get('JAX_LOCAL_DEVICE_IDS', '')
    return [int(number) for number in told.split(',')] if told else None


def _number(name: str) -> int | None:
    value = os.environ.get(name, '')
    return int(value) if value.isdigit() else None


@contextlib.contextmanager
def joined(place: Place, devices: Any, limits: Limits) -> Iterator[None]:
    """Joins the other processes while the block runs.

    Ends this process where another one ends with an error, dies or hangs (see `lm.watch`).

    Raises:
        InputError: the port of process 0 cannot be opened.
    """
    global _member
    hub = None
    if place.index == 0:
        try:
            hub = watch.Hub(place, limits)
        except OSError as error:
            raise InputError(
                f'--coordinator={place.address}: port {place.hub[1]} cannot be opened: {error.strerror}.'
            ) from None
    _member = watch.Member(place, limits, socket.gethostname(), _last_step)
    same('code', _code())
    _join_jax(place, limits, devices)
    stopped = None
    try:
        yield
    except SystemExit as error:  # As all others do.
        stopped = error
    except Exception as error:
        if not command.as_line(error):
            _fail(error)
        raise
    try:
        jax.distributed.shutdown()
    except Exception as error:
        _fail(error)
        raise
    _member.bye()
    _member = None
    if hub:  # Others would miss it.
        hub.wait(limits.silence)
    if stopped:
        raise stopped


def _join_jax(place: Place, limits: Limits, devices: Any) -> None:
    logging.getLogger('jax._src.distributed').setLevel(logging.WARNING)
    # Its notice of SIGTERM would hide the signal from `lm.signals` before the loop begins.
    jax.config.update('jax_enable_preemption_service', False)
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    address = place.address if place.index == 0 else _relay(place.address)
    try:
        jax.distributed.initialize(
            address,
            place.count,
            place.index,
            devices,
            cluster_detection_method='deactivate',
            initialization_timeout=int(limits.join) + 1,
            # Later than `lm.watch`, which says who it is.
            heartbeat_timeout_seconds=int(4 * limits.silence) + 60,
            shutdown_timeout_seconds=int(limits.stall),  # Process 0 writes the report meanwhile.
        )
    except RuntimeError as error:
        raise TryAgain(f'--distributed: JAX: {" ".join(str(error).split())}') from None
    except ValueError as error:
        raise InputError(f'--distributed: JAX: {" ".join(str(error).split())}') from None


def _relay(address: str) -> str:
    """Returns an address on this host at which process 0 answers.

    JAX aborts a process, with a page of C++, at the moment when the connection to process 0 ends.
    This end of it does not, so that `lm.watch` can say what happened.
    """
    host, _, port = address.rpartition(':')
    listener = socket.create_server(('127.0.0.1', 0))

    def pump(source: socket.socket, target: socket.socket, closes: bool) -> None:
        with contextlib.suppress(OSError):
            while found := source.recv(1 << 16):
                target.sendall(found)
        if closes:
            for end in (target, source):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection((host.strip('[]'), int(port)))
            except OSError:  # Not yet there: JAX tries again.
                near.close()
                continue
            for ends in ((near, far, True), (far, near, False)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, name='hosts: relay', daemon=True).start()
    return f'127.0.0.1:{listener.getsockname()[1]}'


def _code() -> dict[str, str]:
    """Returns what the processes must have in common before they share a step."""
    package = Path(__file__).parent
    return {
        'jax': jax.__version__,
        'python': sys.version.split()[0],
        **{
            str(path.relative_to(package.parent)): hashlib.sha256(path.read_bytes()).hexdigest()[
                :12
            ]
            for path in sorted(package.rglob('*.py'))
        },
    }


def _fail(error: Exception) -> None:
    """Ends all processes for a bug of this one; where another one is to blame, it ends as that says."""
    text = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
    if any(sign in str(error) for sign in _OTHERS):
        _member.await_end()
    traceback.print_exception(error)
    _member.error(text, 1)


def leave(error: object, code: int) -> None:
    """Ends all processes with a line and an exit code; returns where there is but one."""
    if _member:
        _member.error(str(error), code)


def reached(step: int | None = None) -> None:
    """Says that the main thread goes on, and with which step."""
    if _member:
        _member.marks += 1
        _member.step = _member.step if step is None else step


@contextlib.contextmanager
def steps() -> Iterator[None]:
    """Is around the loop: only inside of it a process that stands still is one that hangs."""
    if _member:
        _member.takes_steps = True
    yield
    if _member:
        _member.takes_steps = False


def same(what: str, facts: Mapping[str, Any]) -> None:
    """Holds facts (JSON) to those of process 0; where they differ all end with exit code 2, soon."""
    if _member:
        _member.same(what, facts)
        reached()


def check_shared(workdir: Path, name: str) -> None:
    """Checks that all hosts have the same workdir: that they see what process 0 wrote there.

    Args:
        workdir: the run's folder.
        name: of the file that process 0 has written.

    Raises:
        InputError: this host does not see it.
    """
    global _folder
    _folder = workdir
    if not _member:
        return
    if jax.process_index() == 0:
        _member.tell('workdir', (workdir / name).read_text())
        return
    written = _member.hear('workdir')
    until = time.monotonic() + _member.limits.silence  # NFS remembers what was not there.
    while _read(workdir / name) != written:
        if time.monotonic() > until:
            raise InputError(
                f"workdir '{workdir}' is not one folder for all hosts: what process 0 writes there is not "
                'seen here. Give one that they share (NFS, a mounted bucket).'
            )
        time.sleep(0.05)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ''


def _last_step() -> int | None:
    return watch.newest_step(_folder / 'checkpoints') if _folder else None
