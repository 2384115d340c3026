"""The folder of a run: whose it is, who trains there, and its small files.

`config.json` and the tokenizer say what the run is of (`open_workdir`, `begin`, `read_config`), `.lock` who
trains there now (`lock`), and `history.json` what happened to it (`add_history`, `read_history`).
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import jax

from lm import config as configs
from lm import tokenizer
from lm.config import Config
from lm.errors import InputError
from lm.writer import atomic_write

LOCK = '.lock'  # Who trains there.
NEW_TOKENIZER = '.tokenizer'  # A folder: what is not yet the run's.
IMPORTED = 'imported'  # So begins the first event in the workdir of a published model.


def open_workdir(workdir: Path, config: Config) -> None:
    """Makes the workdir, or checks that the one there is of the same config.

    Raises:
        InputError: the folder cannot be written, is not a run's, or belongs to another config; the
            differing keys are named.
    """
    if '://' in str(workdir) or re.match(r'\w{2,}:/', str(workdir)):
        raise InputError(
            f"workdir '{workdir}' is not a path. Mount the bucket (gcsfuse) on every host, and give the "
            'path where it is mounted.'
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = 'it is a file' if workdir.is_file() else error.strerror
        raise InputError(f"workdir '{workdir}' cannot be made: {reason}.") from None
    if not os.access(workdir, os.W_OK):
        raise InputError(f"workdir '{workdir}' cannot be written: no permission.")
    first = next(iter(read_history(workdir)), {})
    if first.get('event', '').startswith(IMPORTED) and not first.get('trains'):
        raise InputError(
            f"workdir '{workdir}' was imported to be used as it is, and keeps no state of an optimizer. To "
            'train it further import it again with what it is trained on, as in '
            '--config.data.train=text:mine.txt.'
        )
    if (workdir / 'config.json').exists():
        changed = {
            key: values
            for key, values in configs.differences(read_config(workdir), _as_json(config)).items()
            if not configs.RESUMABLE.match(key)
        }
        if changed:
            text = ', '.join(
                f'{key} ({old!r} there, {new!r} now)' for key, (old, new) in changed.items()
            )
            raise InputError(
                f"workdir '{workdir}' belongs to another config: {text}. Give another --workdir."
            )
    elif found := present(workdir, *tokenizer.FILES, 'checkpoints', 'metrics.jsonl'):
        raise InputError(
            f"workdir '{workdir}' holds {found[0]} but no config.json, so it is not known what run that "
            'is of. Give another --workdir.'
        )


def begin(workdir: Path, config: Config, text: tokenizer.Tokenizer) -> None:
    """Writes `config.json` and the tokenizer, once nothing in the config has turned out to be wrong.

    A start that failed leaves no config behind, so that the corrected one may have the same workdir.
    """
    if jax.process_index() != 0:
        return
    atomic_write(workdir / 'config.json', json.dumps(_as_json(config), indent=2) + '\n')
    if not (workdir / text.file).exists():
        made = new_tokenizer(workdir, text)  # A kill leaves no half of it under its own name.
        made.replace(workdir / text.file)
        made.parent.rmdir()


def new_tokenizer(workdir: Path, text: tokenizer.Tokenizer) -> Path:
    """Saves a tokenizer that is not yet the run's, below `NEW_TOKENIZER`. Returns its file."""
    partial = workdir / NEW_TOKENIZER
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return text.save(partial)


def present(workdir: Path, *names: str) -> list[str]:
    """Returns which of some files or folders the workdir has."""
    return [name for name in names if (workdir / name).exists()]


def facts(config: Config) -> dict[str, Any]:
    """Returns a config's values (JSON) by their keys, `model.num_layers`."""
    return dict(configs.flatten(_as_json(config)))


def _as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(configs.to_dict(config)))


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns the workdir's `config.json`; keys that it was written without have their defaults.

    Raises:
        InputError: there is none, or it is not a JSON object.
    """
    path = workdir / 'config.json'
    if not path.is_file():
        what = 'it holds no config.json' if workdir.is_dir() else 'there is no such folder'
        raise InputError(f"'{workdir}' is not the workdir of a run: {what}.")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"'{path}' is damaged, it is not JSON: {error}.") from None
    if not isinstance(found, dict) or 'seed' not in found:
        raise InputError(f"'{path}' is damaged, it is not the config of a run.")
    return _filled(found, json.loads(json.dumps(configs.defaults())))


def _filled(found: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with the keys that came to `configs/base.py` after it was written."""
    return found | {
        key: _filled(found.get(key, {}), value) if isinstance(value, dict) and value else value
        for key, value in defaults.items()
        if key not in found or (isinstance(value, dict) and value)
    }


def lock(workdir: Path) -> contextlib.AbstractContextManager:
    """Holds the workdir for this process until the context ends (or the process dies).

    Of several hosts the first one holds it for all.

    Raises:
        InputError: another process is training in it.
    """
    if jax.process_index() != 0:
        return contextlib.nullcontext()
    file = open(workdir / LOCK, 'a')  # noqa: SIM115  held open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another process is training in workdir '{workdir}'. Wait, or give another --workdir."
        ) from None
    except OSError:
        pass  # a file system without locks
    file.truncate(0)
    file.write(f'{socket.gethostname()} {os.getpid()} {time.time_ns()}\n')
    file.flush()
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
