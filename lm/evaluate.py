"""Evaluates a run's checkpoint on its splits, and keeps the result."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lm import config as configs
from lm import mesh
from lm import run as runs
from lm.data.features import TokenizedSplit
from lm.inference import load
from lm.perplexity import perplexity
from lm.run import Run
from lm.writer import plain


class Measured(NamedTuple):
    """What is known of parameters.

    Attributes:
        splits: by split, what `lm.perplexity.perplexity` returns.
        tasks: by split and way, what `lm.translation.measured` returns.
        samples: for a report.
    """

    splits: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    samples: list[dict[str, str]]


def measure(
    run: Run,
    params: Any,
    splits: Mapping[str, TokenizedSplit],
    folder: Path,
    known: Mapping[str, dict[str, Any]],
) -> Measured:
    """Returns the perplexity of whole splits, and where pairs are learnt how good translations are.

    Args:
        run: the run.
        params: the parameters to evaluate.
        splits: to evaluate. Translated is `test`, or `valid` where it is not among them.
        folder: for the translations.
        known: perplexities that were measured before.
    """
    results = {
        name: known[name] if name in known else perplexity(run, params, split, label=name)
        for name, split in splits.items()
    }
    if not run.objective.pairs:
        return Measured(results, {}, [])
    from lm import translation  # sacreBLEU takes a while to import.

    names = [name for name in ('test', 'valid') if name in splits][:1]
    return Measured(results, *translation.evaluate(run, params, names, folder))


def evaluate(
    workdir: str | Path, checkpoint: str | int = '', config: ConfigDict | None = None
) -> dict[str, Any]:
    """Returns the perplexity of each evaluation split of a run, whole, and of one the BLEU.

    Args:
        workdir: the run's folder. The result is added to its `evaluations.jsonl`, with the checkpoint
            and the settings, and translations are kept beside those of the end of training, to which
            the report and these belong.
        checkpoint: as `lm.load` takes it.
        config: where given, its `eval` section is used instead of the run's, and its splits.

    Returns:
        The line of `evaluations.jsonl`: `checkpoint` and its `step`, `eval`, `sources`, `splits`, `tasks`,
        and `predictions`, the folder of the translations or None.

    Raises:
        InputError: there is no such run or checkpoint.
    """
    workdir = Path(workdir)
    new = None if config is None else configs.parse(config)
    if new:
        checkpoint = str(checkpoint) or new.eval.checkpoint
    model = load(workdir, checkpoint)
    run = model.run
    if new:
        data = dataclasses.replace(run.config.data, valid=new.data.valid, test=new.data.test)
        run = dataclasses.replace(
            run, config=dataclasses.replace(run.config, eval=new.eval, data=data)
        )
        rows, length = runs.evaluation_rows(run.config), data.length
        mesh.check_batch(rows, length, 1, run.mesh, 'config.eval.batch_size')
    splits = runs.tokenized_splits(run.config, run.tokenizer, ('valid', 'test'))
    path = workdir / 'evaluations.jsonl'
    earlier = len(path.read_text().splitlines()) if path.exists() else 0
    folder = workdir / 'predictions' / f'evaluation{earlier + 1}'
    found = measure(run, model.params, splits, folder, {})
    line = {
        'checkpoint': str(checkpoint) or run.config.eval.checkpoint,
        'step': model.step,
        'eval': dataclasses.asdict(run.config.eval),
        'sources': {name: getattr(run.config.data, name) for name in splits},
        'splits': found.splits,
        'tasks': found.tasks,
        'predictions': str(folder.relative_to(workdir)) if found.tasks else None,
    }
    if jax.process_index() == 0:
        with open(path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(plain(line)) + '\n')
    return line
