"""The folder of a corpus: it belongs to one config, and one process at a time."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lm import config as configs
from lm.data import corpus_shards
from lm.data.corpus import stages
from lm.data.corpus.options import RESUMABLE
from lm.data.corpus.work import Work
from lm.errors import InputError
from lm.writer import atomic_write

CONFIG, LOCK, REMOVED = 'config.json', '.lock', '.removed'


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from the folder, which is made.

    Raises:
        InputError: another one is there, or files that are no corpus.
    """
    import filelock

    ours = (folder / CONFIG).exists() or (folder / LOCK).exists()
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"'{folder}' holds other files; choose another folder (--output).")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"'{folder}' is being made by another process.") from None
    try:
        yield
    finally:
        lock.release()


def begin(work: Work) -> None:
    """Notes what the folder is of.

    Raises:
        InputError: it is of another corpus, or the input has changed since it was begun.
    """
    path = work.folder / CONFIG
    values = {
        'config': configs.to_dict(work.options),
        'shards': work.shards,
        'evaluation': work.evaluation,
    }
    new = json.loads(json.dumps(values, default=dict))
    if path.exists():
        old = json.loads(path.read_text())
        if not isinstance(old, dict) or not old.keys() >= new.keys():
            raise InputError(f"'{work.folder}' holds no corpus; choose another folder (--output).")
        _same(old, new, work)
    shutil.rmtree(work.folder / REMOVED, ignore_errors=True)
    atomic_write(path, json.dumps(new, indent=1))


def _same(old: dict[str, Any], new: dict[str, Any], work: Work) -> None:
    hint = (
        f'Choose another folder (--output), or remove {work.folder}: documents keep their splits.'
    )
    differ = configs.differences(old['config'], new['config'])
    differ = {key: values for key, values in differ.items() if not RESUMABLE.match(key)}
    if differ:
        told = ', '.join(f'config.{k} ({a!r} there, {b!r} now)' for k, (a, b) in differ.items())
        raise InputError(f"'{work.folder}' holds another corpus, by {told}. {hint}")
    if old['evaluation'] != new['evaluation']:
        raise InputError(
            f"'{work.folder}': an evaluation set has changed since it was made. {hint}"
        )
    if [shard[:3] for shard in old['shards']] != [shard[:3] for shard in new['shards']]:
        before, now = ({p for shard in told['shards'] for p in shard[2]} for told in (old, new))
        changed = sorted(before ^ now)
        what = f"'{changed[0]}' came or went" if changed else 'files have other sizes'
        raise InputError(
            f"'{work.folder}': the input has changed since it was begun: {what}. {hint}"
        )
    for number, (one, other) in enumerate(zip(old['shards'], new['shards'], strict=True)):
        # What was not read yet may be mended.
        if one != other and (_mark(work, 'clean', number).exists() or is_made(work)):
            what = f"'{one[2][0] if one[2] else one[1]}' is another than it was"
            raise InputError(f"'{work.folder}': {what} when it was read. {hint}")


def _mark(work: Work, stage: str, task: int) -> Path:
    """Returns the file by which datatrove knows that a task is done."""
    return work.path('logs', stage, 'completions', f'{task:05d}')


def is_made(work: Work) -> bool:
    """Is there a corpus?"""
    return (work.folder / corpus_shards.MANIFEST).exists()


def is_finished(work: Work, say: Callable[[str], None], files: tuple[str, ...] = ()) -> bool:
    """Is all of it there? What is not as it was written is forgotten, so that it is made again.

    Args:
        work: the corpus.
        say: told of damage.
        files: that must be there too.
    """
    if not is_made(work):
        return False
    made = json.loads((work.folder / corpus_shards.MANIFEST).read_text())
    damaged = False
    for shard in (shard for split in made['splits'].values() for shard in split):
        path = work.folder / shard['name']
        if not path.is_file() or _digest(work.folder, path) != shard['sha256']:
            say(f"shard '{path}' is not as it was written: the corpus is made again.")
            damaged = True
    if damaged:
        for stage in ('write', 'manifest', 'report'):
            shutil.rmtree(work.path('logs', stage), ignore_errors=True)
        return False
    if not all((work.folder / name).exists() for name in files):
        shutil.rmtree(work.path('logs', 'report'), ignore_errors=True)
        return False
    return True


def _digest(folder: Path, path: Path) -> str:
    return corpus_shards.describe(folder, path, 0)['sha256']


def clear(work: Work) -> None:
    """Removes the intermediate files; a kill on the way leaves nothing that would be gone on with."""
    if work.path().exists():
        work.path().rename(work.folder / REMOVED)
    shutil.rmtree(work.folder / REMOVED, ignore_errors=True)


def forget(work: Work) -> None:
    """Removes what was begun, so that another config may have the folder."""
    clear(work)
    (work.folder / CONFIG).unlink(missing_ok=True)


def check_some_left(work: Work, stage: str) -> None:
    """Raises InputError where a stage left nothing, or a source gave nothing; the folder is free again."""
    try:
        stages.check_some_left(work, stage)
    except InputError:
        forget(work)
        raise
