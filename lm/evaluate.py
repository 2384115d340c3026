"""Evaluates a run's checkpoint on its splits, and keeps the result."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lm import config as configs
from lm import link_prediction, mesh
from lm import run as runs
from lm.inference import load
from lm.perplexity import perplexity
from lm.writer import plain


def evaluate(
    workdir: str | Path, checkpoint: str | int = 'latest', config: ConfigDict | None = None
) -> dict[str, dict[str, Any]]:
    """Returns the perplexity of each evaluation split of a run, whole, and the link prediction of triples.

    Args:
        workdir: the run's folder. The result is added to its `evaluations.jsonl`, with the checkpoint
            and the settings; the report stays that of the end of training.
        checkpoint: `latest`, `best` (lowest validation loss) or a step.
        config: where given, its `eval` section is used instead of the run's, and its splits.

    Raises:
        InputError: there is no such run or checkpoint.
    """
    workdir = Path(workdir)
    model = load(workdir, checkpoint)
    run = model.run
    if config is not None:
        new = configs.parse(config)
        data = dataclasses.replace(run.config.data, valid=new.data.valid, test=new.data.test)
        run = dataclasses.replace(
            run, config=dataclasses.replace(run.config, eval=new.eval, data=data)
        )
        rows, length = runs.evaluation_rows(run.config), data.length
        mesh.check_batch(rows, length, 1, run.mesh, 'config.eval.batch_size')
    splits = runs.tokenized_splits(run.config, run.tokenizer, ('valid', 'test'))
    results = {
        name: perplexity(run, model.params, split, label=name) for name, split in splits.items()
    }
    tasks = {}
    for task, part in run.tasks.items():
        links = link_prediction.evaluate(part, model.params)
        tasks |= {f'{task} {name}'.lstrip(): values for name, values in links.items()}
    if jax.process_index() == 0:
        line = {
            'step': model.step,
            'eval': dataclasses.asdict(run.config.eval),
            'sources': {name: getattr(run.config.data, name) for name in results},
            'splits': results,
            'tasks': tasks,
        }
        with open(workdir / 'evaluations.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(plain(line)) + '\n')
    return results | tasks
