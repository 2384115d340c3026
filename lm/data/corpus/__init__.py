"""From raw text to a corpus worth training on: cleaned, without duplicates, split, and accounted for.

    from lm.data import corpus
    corpus.build(corpus.get_config('pydocs'), 'corpora/pydocs')

`options` is what a config says, `stages` the road from raw files to shards, by datatrove's executors;
`steps` what is done to a document, in turn; `exact`, `near` and `contamination` compare documents with each
other; `ledger` counts what was kept and dropped. `python -m lm.corpus` adds the report.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from lm import config as configs
from lm.data import corpus_shards
from lm.errors import InputError
from lm.writer import atomic_write

if TYPE_CHECKING:
    from lm.data.corpus.stages import Stage, Work

__all__ = ['build', 'get_config', 'prepare']


def get_config(name: str, **overrides: Any) -> ConfigDict:
    """Returns a config as a ConfigDict that can still be changed.

    Args:
        name: one of configs/corpus, such as 'pydocs', or the path of a config file.
        overrides: keys, and sections with the keys to change: `clean={'min_words': 20}`.

    Raises:
        InputError: there is no such config or key.
    """
    own = Path(configs.__file__).parent.parent / 'configs' / 'corpus' / f'{name}.py'
    config = configs.load(own if own.is_file() else name)
    flat = configs.flatten(overrides)
    configs.put(config, {k: tuple(v) if isinstance(v, list) else v for k, v in flat})
    return config


def build(
    config: ConfigDict,
    folder: str | Path,
    say: Callable[[str], None] = print,
    last: 'Callable[[Work], Stage] | None' = None,
) -> 'Work | None':
    """Makes a corpus, or goes on with it where it was stopped.

    Args:
        config: what to make.
        folder: where; `train`, `valid` and `test` will hold shards, and `corpus.json` names them.
        say: told what is found.
        last: makes a stage that is run after the others, before `corpus.json` is written.

    Returns:
        What was made; None where its jobs have been queued.

    Raises:
        InputError: the config is wrong, a source cannot be read, another corpus is in the folder, or
            nothing is left.
    """
    work = prepare(config, Path(folder))
    from lm.data.corpus import executors, stages

    def after(stage: str) -> None:
        if stage in ('clean', 'write'):
            stages.check_some_left(work, stage)

    with _alone(work.folder):
        finished = not work.path().exists() and (work.folder / corpus_shards.MANIFEST).exists()
        if finished and not _damaged(work, say):
            return work
        every = [*stages.stages(work), (stages.Manifest(work), 1)]
        if last:
            every.append((last(work), 1))
        if not executors.run_all(every, work.options.run, work.path('logs'), after):
            say(f"queued; '{folder}' is finished when {corpus_shards.MANIFEST} is there.")
            return None
        if not work.options.run.keep_work:
            shutil.rmtree(work.path())
    return work


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from the folder."""
    import filelock

    lock = filelock.FileLock(folder / '.lock')
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"'{folder}' is being made by another process.") from None
    try:
        yield
    finally:
        lock.release()


def prepare(config: ConfigDict, folder: Path) -> 'Work':
    """Returns what a config asks for, and begins its folder.

    Raises:
        InputError: as `build` says.
    """
    try:
        from lm.data.corpus import options, stages, steps
    except ImportError as error:
        raise InputError(
            f"a corpus is made with libraries that are not here ({error.name}): pip install -e '.[corpus]'."
        ) from None

    chosen = options.parse(config)
    steps.build(chosen)  # What is not known is said before the work begins.
    options.named(
        chosen.contamination.evaluation, chosen, 'config.contamination.evaluation', read=True
    )
    work = stages.Work(folder, chosen, tuple(stages.plan(chosen)))
    values = {'config': configs.to_dict(chosen), 'shards': work.shards}
    new = json.loads(json.dumps(values, default=dict))
    path = folder / 'config.json'
    if path.exists():
        _same(json.loads(path.read_text()), new, folder)
    atomic_write(path, json.dumps(new, indent=1))
    return work


def _same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raises InputError where the folder is of another corpus, or the input has changed since."""
    from lm.data.corpus.options import RESUMABLE

    differ = configs.differences(old['config'], new['config'])
    differ = {key: values for key, values in differ.items() if not RESUMABLE.match(key)}
    if differ:
        told = ', '.join(f'config.{k} ({a!r} there, {b!r} now)' for k, (a, b) in differ.items())
        raise InputError(
            f"'{folder}' holds another corpus, by {told}. Choose another folder (--output), or remove it."
        )
    if old['shards'] != new['shards']:
        before, now = (
            {path for shard in told['shards'] for path in shard[2]} for told in (old, new)
        )
        changed = sorted(before ^ now)
        what = f"'{changed[0]}' came or went" if changed else 'a file has another size'
        raise InputError(
            f"'{folder}': the input is not what it was when the corpus was begun: {what}. Choose another "
            'folder (--output), or remove it: documents keep their splits.'
        )


def _damaged(work: 'Work', say: Callable[[str], None]) -> bool:
    """Is a shard not as it was written? Then all is made again."""
    made = json.loads((work.folder / corpus_shards.MANIFEST).read_text())
    for shard in (shard for split in made['splits'].values() for shard in split):
        path = work.folder / shard['name']
        if (
            not path.is_file()
            or corpus_shards.describe(work.folder, path, 0)['sha256'] != shard['sha256']
        ):
            say(f"shard '{path}' is not as it was written: the corpus is made again.")
            return True
    return False
