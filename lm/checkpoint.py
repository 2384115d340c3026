"""Checkpoints: Orbax underneath, and a promise on top: what is restored is what was saved.

A checkpoint holds the whole state of the step (parameters, optimizer, average, counters, rng), the position
of the data iterator, and a fingerprint of the bits of both. Restoring checks them; a checkpoint that cannot
be read or does not match is set aside, and the one before it is used.

Training does not wait for a save. The loop's thread only starts the copy of the state to host memory, which
the next step's donation waits for and Python does not; one thread of this process does all the rest.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import checkpoint_managers as managers

from lm import mesh, tree
from lm.config import CheckpointConfig, digest
from lm.errors import InputError

# Fields of the state that checkpoints once did not have.
_LATER = ('precision',)


def _snapshot(state: Any, fingerprint: Callable[[Any], jax.Array]) -> Any:
    """Returns a state in host memory with its `fingerprint(state)`, before either is ready.

    Both read the state's buffers as programs on the device do: a step that these are donated to is
    dispatched at once, and does not overwrite them before they are read. (`device_put` and not a jitted
    copy, which XLA for CPU runs in the thread that calls it.)
    """
    host = jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind('pinned_host'), state)
    return {'state': jax.device_put(state, host), 'fingerprint': fingerprint(state)}


def _compile_fingerprint(shapes: Any) -> Callable[[Any], jax.Array]:
    return jax.jit(tree.fingerprint).lower(shapes).compile()


def _replicated(shapes: Any) -> Sharding:
    """Returns the sharding of a number that all devices of a state have."""
    sharding = jax.tree.leaves(shapes)[0].sharding
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding


def _on_all_hosts(read: Callable[[], Any]) -> Any:
    """Returns what is read, or raises where any host cannot: none goes on without the others."""
    found = error = None
    try:
        found = read()
    except Exception as raised:  # noqa: BLE001  whatever a broken file makes Orbax raise
        error = raised
    if mesh.agree(error is not None):
        raise error or ValueError('another host cannot read it')
    return found


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Returns who writes and reads each item: a tree of arrays as always, but not compressed.

    Compression takes 8 % off random float32, for four times the processor time of all the rest, which on
    CPU the steps would have. Checkpoints of both kinds are read.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    json_handler = ocp.JsonCheckpointHandler()
    for item, kind, handler in (
        ('state', ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False)),
        ('state', ocp.args.StandardRestore, ocp.StandardCheckpointHandler()),
        ('data', ocp.args.JsonSave, json_handler),
        ('data', ocp.args.JsonRestore, json_handler),
    ):
        registry.add(item, kind, handler)
    return registry


def averaged(name: str) -> int:
    """Returns N of `average:N`, the name of the mean of the latest N checkpoints; 0 of other names."""
    match = re.fullmatch(r'average:([1-9]\d*)', name)
    return int(match[1]) if match else 0


class Checkpoints:
    """The checkpoints of one run: asynchronous, atomic; the latest few and the best are kept."""

    def __init__(
        self,
        workdir: Path,
        config: CheckpointConfig,
        say: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        """Opens `workdir/checkpoints`, removing what an interrupted save left there.

        Args:
            workdir: the run's folder.
            config: how many to keep.
            say: prints a line for a person; called on the first host only.
            read_only: to look only, while another process may be saving: nothing is removed or moved.
        """
        # Orbax narrates every save; what goes wrong is raised too.
        logging.getLogger('absl').setLevel(logging.CRITICAL)
        _ignore_late_futures()
        self.folder = Path(workdir).absolute() / 'checkpoints'
        self._aside = self.folder.parent / 'unreadable'
        self._say = say if jax.process_index() == 0 else lambda line: None
        self._keep, self._read_only = config, read_only
        # One thread: saves come one after the other, in the same order on all hosts.
        self._writer = concurrent.futures.ThreadPoolExecutor(1, 'checkpoints')
        self._saving: concurrent.futures.Future[None] | None = None
        self._fingerprint: concurrent.futures.Future[Callable[[Any], jax.Array]] | None = None
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        best = managers.BestN(
            get_metric_fn=lambda metrics: -metrics['loss'],
            n=self._keep.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        hosts = jax.process_count()
        if not self._read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics['loss'],
            best_mode='min',
            preservation_policy=managers.AnyPreservationPolicy(
                [managers.LatestN(self._keep.keep), best]
            ),
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            save_interval_steps=0 if self._read_only else 1,
            create=False,
            enable_async_checkpointing=False,
            # Processes that are named wait for each other by messages. Else Orbax runs a program on all
            # devices, which from a thread may come between the loop's, on each host at another place.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=set(range(hosts)) if hosts > 1 else None
            ),
        )
        self._move_damaged_metrics()
        return ocp.CheckpointManager(self.folder, options=options, handler_registry=_handlers())

    def _move_damaged_metrics(self) -> None:
        """Sets validation losses aside that are not JSON, since Orbax would not open the folder at all."""
        for path in self.folder.glob('*/metrics/metrics'):
            try:
                float(json.loads(path.read_text())['loss'])
            except (OSError, ValueError, KeyError, TypeError):
                step = path.parent.parent.name
                self._move(path.parent, f'{step}.metrics')
                self._say(
                    f'The validation loss of checkpoint {step} cannot be read: it was moved to '
                    f'{self._aside}, and the checkpoint does not count among the best.'
                )

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, ascending, when the last save is on the disk."""
        self.wait()
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step of the lowest validation loss, or None where none was measured."""
        self.wait()
        return self._manager.best_step()

    def prepare(self, shapes: Any) -> None:
        """Begins to compile, in the background, what the first save would otherwise wait for.

        Args:
            shapes: the state that will be saved, or its `jax.ShapeDtypeStruct`s with shardings.
        """
        self._fingerprint = self._writer.submit(_compile_fingerprint, shapes)

    def save(self, step: int, state: Any, data: dict[str, Any], loss: float | None) -> None:
        """Begins to save; the loop goes on while the state is copied and the files are written.

        At most one copy of the state is alive: a save that is still under way is waited for.

        Args:
            step: the number of steps done. One that is there already is left as it is.
            state: the state after them. Its buffers may be donated as soon as this returns.
            data: the data iterator's state (JSON).
            loss: validation loss at this step, if it was measured.

        Raises:
            InputError: at the save before this one, the disk was full or not writable; earlier checkpoints
                are kept.
        """
        if step in self.steps:
            return
        if self._fingerprint is None:
            self.prepare(state)
        snapshot = _snapshot(state, self._fingerprint.result())
        self._saving = self._writer.submit(self._write, step, snapshot, data, loss)

    def _write(self, step: int, snapshot: Any, data: dict[str, Any], loss: float | None) -> None:
        with _DiskErrors(self):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(snapshot),
                    data=ocp.args.JsonSave({**data, 'digest': digest(data)}),
                ),
                metrics=None if loss is None else {'loss': loss},
            )

    def restore(self, shapes: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
        """Returns `(step, state, data)` of the newest checkpoint that is whole, or None if none exist.

        Newer ones that are not whole are then moved to `workdir/unreadable`. If none is whole, all are
        left where they are.

        Args:
            shapes: the state as `jax.ShapeDtypeStruct`s with the shardings that it shall have; they need
                not be those it was saved with.
            step: only this step, instead of the newest.

        Raises:
            InputError: there are checkpoints, but none can be read.
        """
        self.wait()
        steps = self.steps if step is None else [step]
        if steps and self._fingerprint is None:
            self.prepare(shapes)
        broken: dict[int, str] = {}
        for candidate in reversed(steps):
            try:
                state, data = self._read(candidate, shapes)
            except Exception as error:  # noqa: BLE001  whatever a broken file makes Orbax raise
                broken[candidate] = _first_line(error)
                continue
            if broken:
                self._fall_back(broken, candidate)
            return candidate, state, data
        if steps:
            raise InputError(
                f'no checkpoint in {self.folder} can be read '
                f'(step {", ".join(map(str, broken))}: {list(broken.values())[0]}). Nothing was changed: '
                'put a copy back, or move the folder away to train from the beginning.'
            )
        return None

    def _read(self, step: int, shapes: Any) -> tuple[Any, dict[str, Any]]:
        # Without a sharding Orbax would take that of the hosts that saved it.
        fingerprint = jax.ShapeDtypeStruct((), jnp.uint32, sharding=_replicated(shapes))

        def restore(state: Any) -> Any:
            target = {'state': state, 'fingerprint': fingerprint}
            args = ocp.args.Composite(
                state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
            )
            return self._manager.restore(step, args=args)

        def restored_any() -> Any:
            try:
                return restore(shapes)
            except ValueError:
                if not (older := _as_older(shapes)):
                    raise
                found = restore(older)
                state = dataclasses.replace(shapes, **found['state']['state'])
                return {'state': found['state'] | {'state': state}, 'data': found['data']}

        restored = _on_all_hosts(restored_any)
        state, data = restored['state']['state'], dict(restored['data'])
        same = int(self._fingerprint.result()(state)) == int(restored['state']['fingerprint'])
        if not same or data.pop('digest') != digest(data):
            raise ValueError('its fingerprint does not match its contents')
        return state, data

    def _fall_back(self, broken: dict[int, str], step: int) -> None:
        for newer, reason in broken.items():
            self._say(f'The checkpoint of step {newer} cannot be read ({reason}).')
        if self._read_only:
            self._say(f'Using that of step {step}.')
            return
        self._manager.close()
        mesh.barrier('unreadable checkpoints found')
        for newer in broken:
            self._move(self.folder / str(newer), str(newer))
        mesh.barrier('unreadable checkpoints moved')
        self._manager = self._open()
        self._say(f'Going on from step {step}. What cannot be read was moved to {self._aside}.')

    def _move(self, path: Path, name: str) -> None:
        if jax.process_index() != 0:
            return
        self._aside.mkdir(exist_ok=True)
        while (self._aside / name).exists():
            name += '_'
        path.rename(self._aside / name)

    def wait(self) -> None:
        """Returns when all files of the last save are written.

        Raises:
            InputError: the disk is full or not writable; earlier checkpoints are kept.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:  # What is under way is still written; of several errors, the first is the one to tell.
            with contextlib.suppress(Exception):
                self.close()


@functools.cache
def _ignore_late_futures() -> None:
    """Keeps tracebacks of Orbax's abandoned work from the terminal.

    When one file of a checkpoint fails, Orbax raises and closes its event loop; each file that is still
    under way then prints what becomes of it.
    """
    earlier = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, 'cr_code', None)
        of_orbax = code is not None and 'orbax' in code.co_filename
        if not of_orbax and str(unraisable.exc_value) != 'Event loop is closed':
            earlier(unraisable)

    sys.unraisablehook = hook


def _as_older(shapes: Any) -> dict[str, Any]:
    """Returns a state's fields without those that older checkpoints lack; {} where they hold anything."""
    if not all(
        hasattr(shapes, name) and not jax.tree.leaves(getattr(shapes, name)) for name in _LATER
    ):
        return {}
    fields = (field.name for field in dataclasses.fields(shapes))
    return {name: getattr(shapes, name) for name in fields if name not in _LATER}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else repr(error)


class _DiskErrors:
    """Turns a full or read-only disk, however Orbax reports it, into one line."""

    SIGNS = {
        'is full': ('No space left on device', 'Disk quota exceeded', 'File too large'),
        'cannot be written': ('Permission denied', 'Read-only file system'),
    }

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += ' No space left on device'
        for what, signs in self.SIGNS.items():
            if error is not None and any(sign in text for sign in signs):
                folder = self._checkpoints.folder
                kept = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
                raise InputError(
                    f'the disk that holds {folder} {what}: this checkpoint was not saved. Kept: '
                    f'{f"steps {kept}" if kept else "none"}. Make room and start again to go on from there.'
                ) from error
