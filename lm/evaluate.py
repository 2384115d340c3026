"""Evaluates a run's checkpoint on its splits, and keeps the result."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lm import config as configs
from lm import link_prediction, mesh
from lm import run as runs
from lm.data.features import TokenizedSplit
from lm.errors import InputError
from lm.inference import load
from lm.models import pipeline
from lm.perplexity import perplexity
from lm.run import Run
from lm.writer import plain

# A line for each evaluation.
FILE = 'evaluations.jsonl'


class Measured(NamedTuple):
    """What is known of parameters.

    Attributes:
        splits: by split, what `lm.perplexity.perplexity` returns.
        tasks: by split and way, what `lm.translation.measured` returns; and what is predicted of texts.
        samples: by task, of those that translate, for a report.
    """

    splits: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, str]]]


def measure(
    run: Run,
    params: Any,
    splits: Mapping[str, Mapping[str, TokenizedSplit]],
    folder: Path,
    known: Mapping[str, Mapping[str, dict[str, Any]]],
) -> Measured:
    """Returns the perplexity of whole splits; what is predicted of texts; how good translations
    are, and links.

    Args:
        run: the run.
        params: the parameters to evaluate.
        splits: by task, to evaluate. Translated is `test`, or `valid` where it is not among them.
        folder: for the translations.
        known: by task and split, what was measured before.
    """
    found = Measured({}, {}, {})
    for task, part in run.tasks.items():
        results = found.tasks if part.objective.of_texts else found.splits
        prefix = f'{task} ' if task else ''
        for name, split in splits[task].items():
            label, before = f'{prefix}{name}', known.get(task, {})
            results[label] = before.get(name) or perplexity(part, params, split, label=label)
        if part.objective.writes:
            from lm import translation  # sacreBLEU takes a while to import.

            names = [name for name in ('test', 'valid') if name in splits[task]][:1]
            made, found.samples[task] = translation.evaluate(part, params, names, folder / task)
            found.tasks.update({f'{prefix}{name}': values for name, values in made.items()})
        links = link_prediction.evaluate(part, params)
        found.tasks.update({f'{prefix}{name}': values for name, values in links.items()})
    return found


def _changed(run: Run, config: configs.Config) -> Run:
    """Returns the run with another config's `eval`, and its splits.

    Raises:
        InputError: the configs have other tasks, or the batch does not fit the mesh.
    """
    parts = configs.tasks(config)
    if set(parts) != set(run.tasks):
        raise InputError(
            f'the run has the tasks {sorted(run.tasks)}, and --config has {sorted(parts)}.'
        )

    def changed(part: Run, new: configs.Config) -> Run:
        data = dataclasses.replace(part.config.data, valid=new.data.valid, test=new.data.test)
        part = dataclasses.replace(
            part, config=dataclasses.replace(part.config, eval=new.eval, data=data)
        )
        rows, length = runs.evaluation_rows(part.config), data.length
        micro = pipeline.micro_batches(part.config.model, run.mesh)
        mesh.check_batch(rows, length, 1, run.mesh, 'config.eval.batch_size', micro)
        return part

    others = {task: changed(part, parts[task]) for task, part in (run.others or {}).items()}
    return dataclasses.replace(changed(run, config), others=others or None)


def evaluate(
    workdir: str | Path, checkpoint: str | int = '', config: ConfigDict | None = None
) -> dict[str, Any]:
    """Returns the perplexity of each evaluation split of a run, whole; BLEU, and links.

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
        run = _changed(run, new)
    splits = {
        task: runs.tokenized_splits(part.config, part.tokenizer, ('valid', 'test'))
        for task, part in run.tasks.items()
    }
    path = workdir / FILE
    earlier = len(path.read_text().splitlines()) if path.exists() else 0
    folder = workdir / 'predictions' / f'evaluation{earlier + 1}'
    found = measure(run, model.params, splits, folder, {})
    wrote = any(part.objective.writes and splits[task] for task, part in run.tasks.items())
    line = {
        'checkpoint': str(checkpoint) or run.config.eval.checkpoint,
        'step': model.step,
        'eval': dataclasses.asdict(run.config.eval),
        'sources': {
            f'{task} {name}'.lstrip(): split.spec
            for task, parts in splits.items()
            for name, split in parts.items()
        },
        'splits': found.splits,
        'tasks': found.tasks,
        'predictions': str(folder.relative_to(workdir)) if wrote else None,
    }
    _add(workdir, line)
    return line


def evaluate_tasks(
    workdir: str | Path,
    tasks: Sequence[str],
    checkpoint: str | int = '',
    task: str = '',
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Returns the results of tasks of EleutherAI's lm-evaluation-harness, and a table for people.

    Args:
        workdir: the run's folder. The result is added to its `evaluations.jsonl`, with the checkpoint.
        tasks: names of the harness's tasks, groups or tags.
        checkpoint: as `lm.load` takes it.
        task: of a run of several tasks, which.
        options: of `lm.harness.find`: `shots`, `limit`, `folder`.

    Raises:
        InputError: there is no such run, checkpoint or task, or the harness is not installed.
    """
    from lm import harness  # Its library is an extra, and takes a while to import.

    questions = harness.find(tasks, **options)
    model = load(workdir, checkpoint)
    found, table = harness.evaluate(model, questions, task)
    chosen = str(checkpoint) or model.run.config.eval.checkpoint
    _add(Path(workdir), {'checkpoint': chosen, 'step': model.step, 'task': task, **found})
    return found, table


def _add(workdir: Path, line: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        with open(workdir / FILE, 'a', encoding='utf-8') as file:
            file.write(json.dumps(plain(line)) + '\n')
