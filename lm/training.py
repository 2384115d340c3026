"""Training: build, restore, loop, report. Reads from top to bottom."""

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lm import config as configs
from lm import hosts, mesh, precision
from lm import run as runs
from lm import workdir as workdirs
from lm.checkpoint import Checkpoints
from lm.data.features import TokenizedSplit
from lm.finish import finish
from lm.goodput import Ledger
from lm.loop import Loop
from lm.out_of_memory import Guard
from lm.signals import Stop
from lm.watch import newest_step


def train(config: ConfigDict, workdir: str | Path, began: float | None = None) -> dict[str, Any]:
    """Trains what a config describes, or goes on where an earlier start in the workdir ended.

    Args:
        config: from a config file's `get_config()`, with any overrides.
        workdir: the run's folder: config, tokenizer, checkpoints, metrics and report.
        began: when the command was started, seconds since 1970, for the report; None is now.

    Returns:
        The report, as in `report.json`; `finished` is False if the process was asked to stop (SIGTERM,
        Ctrl-C). Where that was before the first step there is no report: it has `finished`, `steps`, and
        no `splits` and `tasks`.

    Raises:
        InputError: something in the config, the data or the workdir is wrong, or the disk is full, or a
            device's memory is not enough.
        RunStopped: too many steps in a row had a gradient that was not finite.
    """
    started, ledger = time.time(), Ledger(began)
    config = configs.parse(config)
    workdir = Path(workdir)
    hosts.same('config', workdirs.facts(config))
    device_mesh = runs.check_mesh(config)
    workdirs.open_workdir(workdir, config)
    with (
        workdirs.lock(workdir),
        Guard(workdir, ledger) as guard,
        contextlib.ExitStack() as stack,
        Stop() as stop,
    ):
        hosts.check_shared(workdir, workdirs.LOCK)
        # ---------------------------------------------------------------- build
        with ledger.during('tokenizer'):
            text = runs.build_tokenizer(config, workdir)
        with ledger.during('build'):
            guard.run = run = runs.build(config, text, device_mesh)
        with ledger.during('data'):
            splits = {
                task: runs.tokenized_splits(part.config, text) for task, part in run.tasks.items()
            }
            hosts.same(
                'data', {f'{t} {n}': s.key for t, part in splits.items() for n, s in part.items()}
            )
            trained = runs.blends(run, splits)
            mixture = runs.mixture(run, trained)
        workdirs.begin(workdir, config, text)
        if mesh.agree(stop.is_set()):
            return _stopped(workdir)
        if jax.process_index() == 0 and (
            slow := precision.emulated(config.model, jax.devices()[0])
        ):
            print(f'lm: {slow}', file=sys.stderr)
        # -------------------------------------------------------------- restore
        with ledger.during('restore'):
            checkpoints = stack.enter_context(Checkpoints(workdir, config.checkpoint))
            restored = checkpoints.restore(run.steps.shapes)
        if restored:
            step, state, data_state = restored
        else:
            with ledger.during('build'), jax.set_mesh(run.mesh):
                step, state, data_state = 0, run.steps.init(), {'next_index': 0}
        if mesh.agree(stop.is_set()):
            return _stopped(workdir)
        if jax.process_index() == 0:
            ledger.open(workdir)
            stack.callback(ledger.save)
        workdirs.add_history(
            workdir,
            'resume' if restored else 'start',
            step,
            devices=jax.device_count(),
            mesh=dict(run.mesh.shape),
            **_invalid_bytes(splits),
        )
        # ----------------------------------------------------------------- loop
        loop = Loop(run, workdir, splits, trained, mixture, checkpoints, step, ledger, guard, stop)
        state, step = loop.train(state, data_state)
        stop.close()
        # --------------------------------------------------------------- report
        return finish(loop, state, step, time.time() - started)


def _stopped(workdir: Path) -> dict[str, Any]:
    """Returns what is known of a run that was asked to stop before the first step of this start."""
    step = newest_step(workdir / 'checkpoints') or 0
    return {'finished': False, 'steps': step, 'splits': {}, 'tasks': {}}


def _invalid_bytes(splits: Mapping[str, Mapping[str, TokenizedSplit]]) -> dict[str, Any]:
    """Says how many bytes were not UTF-8; returns it for the history, by split."""
    found = {}
    for task, parts in splits.items():
        for name, split in parts.items():
            if split.invalid_bytes:
                found[f'{task} {name}'.lstrip()] = split.invalid_bytes
                print(
                    f"warning: {split.invalid_bytes:,} bytes of the {name} source '{split.spec}' are not "
                    'UTF-8; they became U+FFFD.',
                    file=sys.stderr,
                )
    return {'invalid_utf8_bytes': found} if found else {}
