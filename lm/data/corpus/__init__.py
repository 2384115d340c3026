"""From raw text to a corpus worth training on: cleaned, without duplicates, split, and accounted for.

    from lm.data import corpus
    corpus.build(corpus.get_config('pydocs'), 'corpora/pydocs')

`options` is what a config says, `work` what of it is done where, `stages` the road from raw files to
shards; `steps` what is done to a document, in turn; `exact`, `near`, `contamination` (and `repeats`, which
brings them together) compare documents with each other; `ledger` counts what was kept and dropped.
`python -m lm.corpus` adds the report.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from lm import config as configs
from lm.data import corpus_shards
from lm.errors import InputError

if TYPE_CHECKING:
    from lm.data.corpus.stages import Stage
    from lm.data.corpus.work import Work

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
    files: tuple[str, ...] = (),
) -> 'Work | None':
    """Makes a corpus, or goes on with it where it was stopped.

    With several tasks at once it begins processes: a script that calls it does so below
    `if __name__ == '__main__':`.

    Args:
        config: what to make.
        folder: where; `train`, `valid` and `test` will hold shards, and `corpus.json` names them.
        say: told what is found.
        last: makes a stage that is run after the others,
        files: and these are what it writes.

    Returns:
        What was made; None where its jobs have been queued.

    Raises:
        InputError: the config is wrong, a source cannot be read, another corpus is in the folder, or
            nothing is left.
    """
    work = prepare(config, Path(folder))
    from lm.data.corpus import executors, stages
    from lm.data.corpus import folder as place

    def after(stage: str) -> None:
        if stage in ('clean', 'write'):
            place.check_some_left(work, stage)

    with place.alone(work.folder):
        place.begin(work)
        if place.is_finished(work, say, files):
            if not work.options.run.keep_work:
                place.clear(work)
            return work
        every = [*stages.stages(work), (stages.Manifest(work), 1)]
        if last:
            every.append((last(work), 1))
        if not executors.run_all(every, work.options.run, work.path('logs'), after):
            say(f"queued; '{folder}' is finished when {corpus_shards.MANIFEST} is there.")
            return None
        if not work.options.run.keep_work:
            place.clear(work)
    return work


def prepare(config: ConfigDict, folder: Path) -> 'Work':
    """Returns what a config asks for.

    Raises:
        InputError: as `build` says.
    """
    try:
        from lm.data.corpus import options, steps, work
    except ImportError as error:
        raise InputError(
            f"a corpus is made with libraries that are not here ({error.name}): pip install -e '.[corpus]'."
        ) from None

    chosen = options.parse(config)
    steps.build(chosen)  # What is not known is said before the work begins.
    return work.Work(folder, chosen, tuple(work.plan(chosen)), work.evaluation(chosen))
