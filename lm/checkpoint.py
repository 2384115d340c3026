"""Checkpoints: Orbax underneath, and a promise on top: what is restored is what was saved.

A checkpoint holds the whole state of the step (parameters, optimizer, average, counters, rng), the position
of the data iterator, and a fingerprint of the state's bits. Restoring checks the fingerprint; a checkpoint
that cannot be read or does not match is set aside, and the one before it is used.
"""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from lm import tree
from lm.config import CheckpointConfig
from lm.errors import InputError


@jax.jit
def _snapshot(state: Any) -> Any:
    """Copies a state, with its fingerprint.

    The copy matters on CPU, where Orbax would otherwise write from the very buffers that the next step,
    to which they are donated, overwrites.
    """
    return {'state': jax.tree.map(jnp.copy, state), 'fingerprint': tree.fingerprint(state)}


class Checkpoints:
    """The checkpoints of one run: asynchronous, atomic; the latest few and the best are kept."""

    def __init__(self, workdir: Path, config: CheckpointConfig, say: Callable[[str], None] = print):
        """Opens `workdir/checkpoints`, removing what an interrupted save left there.

        Args:
            workdir: the run's folder.
            config: how many to keep.
            say: prints a line for a person.
        """
        logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax narrates every save
        self.folder = Path(workdir).absolute() / 'checkpoints'
        self._say = say
        self._keep = config
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        best = managers.BestN(
            get_metric_fn=lambda metrics: -metrics['loss'],
            n=self._keep.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics['loss'],
            best_mode='min',
            preservation_policy=managers.AnyPreservationPolicy(
                [managers.LatestN(self._keep.keep), best]
            ),
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=('state', 'data'))

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step of the lowest validation loss, or None where none was measured."""
        return self._manager.best_step()

    def save(self, step: int, state: Any, data: dict[str, Any], loss: float | None) -> None:
        """Begins to save; the loop goes on while the files are written.

        Args:
            step: the number of steps done.
            state: the state after them. Its buffers may be donated as soon as this returns.
            data: the data iterator's state (JSON).
            loss: validation loss at this step, if it was measured.

        Raises:
            InputError: the disk is full or not writable; earlier checkpoints are kept.
        """
        if step in self._manager.all_steps():
            return
        with _DiskErrors(self):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_snapshot(state)),
                    data=ocp.args.JsonSave(data),
                ),
                metrics=None if loss is None else {'loss': loss},
            )

    def restore(self, shapes: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
        """Returns `(step, state, data)` of the newest checkpoint that is whole, or None if none exist.

        Args:
            shapes: the state as `jax.ShapeDtypeStruct`s with the shardings that it shall have; they need
                not be those it was saved with.
            step: only this step, instead of the newest.

        Raises:
            InputError: there are checkpoints, but none can be read.
        """
        target = {'state': shapes, 'fingerprint': jax.ShapeDtypeStruct((), jnp.uint32)}
        steps = self.steps if step is None else [step]
        reason = ''
        for candidate in reversed(steps):
            try:
                restored = self._manager.restore(
                    candidate,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
                    ),
                )
                state = restored['state']['state']
                if int(jax.jit(tree.fingerprint)(state)) != int(restored['state']['fingerprint']):
                    raise ValueError('its fingerprint does not match its contents')
                return candidate, state, dict(restored['data'])
            except Exception as error:  # noqa: BLE001  whatever a broken file makes Orbax raise
                reason = str(error).strip().splitlines()[0][:300] if str(error) else repr(error)
                self._say(f'The checkpoint of step {candidate} cannot be read ({reason}).')
                self._set_aside(candidate)
        if steps:
            raise InputError(
                f'no checkpoint in {self.folder} can be read (steps {steps}; {reason}). They were moved '
                f'to {self.folder.parent / "unreadable"}; start again to train from the beginning.'
            )
        return None

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            aside = self.folder.parent / 'unreadable'
            aside.mkdir(exist_ok=True)
            name = f'{step}'
            while (aside / name).exists():
                name += '_'
            (self.folder / str(step)).rename(aside / name)
        self._manager = self._open()
        before = [s for s in self.steps if s < step]
        self._say(
            f'It was moved to {self.folder.parent / "unreadable"}; '
            + (f'falling back to step {before[-1]}.' if before else 'there is none before it.')
        )

    def wait(self) -> None:
        """Returns when all files of all saves are written.

        Raises:
            InputError: the disk is full or not writable; earlier checkpoints are kept.
        """
        with _DiskErrors(self):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self.wait()
        self._manager.close()


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
