"""One run: a workdir, and everything that its config builds."""

import dataclasses
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from lm import config as configs
from lm import mesh, optimizers, tokenizer
from lm.config import Config
from lm.data import features, source
from lm.errors import InputError
from lm.objectives import OBJECTIVES
from lm.step import Steps
from lm.writer import atomic_write

SPLITS = ('train', 'valid', 'test')


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config builds.

    Attributes:
        config: the config.
        tokenizer: saved in the workdir.
        mesh: over all devices.
        steps: the compiled functions.
        learning_rate: learning rate by step.
        objective: `(tokens, rng) -> fields` of a batch.
    """

    config: Config
    tokenizer: tokenizer.Tokenizer
    mesh: Mesh
    steps: Steps
    learning_rate: optax.Schedule
    objective: Callable[..., Any]


def build(config: Config, text: tokenizer.Tokenizer) -> Run:
    """Returns the run of a config and a tokenizer.

    Raises:
        InputError: the mesh does not fit the devices, the batch or a parameter, or a name is unknown.
    """
    device_mesh = check_mesh(config)
    learning_rate = optimizers.schedule(
        config.schedule, config.optimizer.learning_rate, config.train.steps
    )
    optimizer = optimizers.build(config.optimizer, learning_rate)
    with jax.set_mesh(device_mesh):
        steps = Steps(config, text.vocab_size, device_mesh, optimizer)
    objective = functools.partial(OBJECTIVES['causal'], spec=None)
    return Run(config, text, device_mesh, steps, learning_rate, objective)


def check_mesh(config: Config) -> Mesh:
    """Returns the mesh, after checking that it divides the batches.

    Raises:
        InputError: it does not, or does not fit the devices.
    """
    device_mesh = mesh.make(config.mesh)
    data = config.data
    parts = config.optimizer.accumulation
    mesh.check_batch(data.batch_size, data.length, parts, device_mesh, 'config.data.batch_size')
    if config.eval.batch_size:
        rows = config.eval.batch_size
        mesh.check_batch(rows, data.length, 1, device_mesh, 'config.eval.batch_size')
    return device_mesh


def build_tokenizer(config: Config, workdir: Path) -> tokenizer.Tokenizer:
    """Returns the workdir's tokenizer; trains and saves it first if there is none."""
    if any((workdir / name).exists() for name in tokenizer.FILES):
        return tokenizer.load(workdir)
    texts = source.parse(config.data.train, config.data)
    built = tokenizer.build(config.tokenizer, texts.documents)
    built.save(workdir)
    return built


def tokenized_splits(
    config: Config, text: tokenizer.Tokenizer, names: tuple[str, ...] = SPLITS
) -> dict[str, features.TokenizedSplit]:
    """Returns the config's splits as tokens, from the cache where they are there."""
    return {
        name: features.tokenize(source.parse(spec, config.data), text, config.data, name)
        for name in names
        if (spec := getattr(config.data, name))
    }


# ---------------------------------------------------------------------------------- the workdir


def open_workdir(workdir: Path, config: Config) -> None:
    """Makes the workdir and writes `config.json`, or checks that the one there is the same.

    Raises:
        InputError: the folder cannot be written, or belongs to another config; the differing keys are
            named.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir '{workdir}' cannot be made: {error.strerror}.") from None
    if not os.access(workdir, os.W_OK):
        raise InputError(f"workdir '{workdir}' cannot be written: no permission.")
    new = json.loads(json.dumps(configs.to_dict(config)))
    path = workdir / 'config.json'
    if path.exists():
        changed = {
            key: values
            for key, values in configs.differences(read_config(workdir), new).items()
            if not configs.RESUMABLE.match(key)
        }
        if changed:
            text = ', '.join(
                f'{key} ({old!r} there, {new!r} now)' for key, (old, new) in changed.items()
            )
            raise InputError(
                f"workdir '{workdir}' belongs to another config: {text}. Give another --workdir."
            )
    if jax.process_index() == 0:
        atomic_write(path, json.dumps(new, indent=2) + '\n')


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns the workdir's `config.json`.

    Raises:
        InputError: there is none, or it is not JSON.
    """
    path = workdir / 'config.json'
    if not path.is_file():
        raise InputError(f"'{workdir}' is not the workdir of a run: it holds no config.json.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON: {error}.") from None


def lock(workdir: Path) -> Any:
    """Returns a file that holds the workdir for this process until it is closed (or the process dies).

    Raises:
        InputError: another process is training in it.
    """
    file = open(workdir / '.lock', 'w')  # noqa: SIM115  held open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another process is training in workdir '{workdir}'. Wait, or give another --workdir."
        ) from None
    except OSError:
        pass  # a file system without locks
    return file


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """Returns what happened to the run: starts, resumes, preemptions."""
    path = workdir / 'history.json'
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError:
        return []


def add_history(workdir: Path, event: str, step: int, **details: Any) -> None:
    """Adds an event to `history.json`."""
    if jax.process_index() != 0:
        return
    entry = {'event': event, 'step': step, 'time': round(time.time(), 3), **details}
    history = [*read_history(workdir), entry]
    atomic_write(workdir / 'history.json', json.dumps(history, indent=1) + '\n')
