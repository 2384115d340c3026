"""Evaluates a run's checkpoint on its splits, and brings its report up to date."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lm import config as configs
from lm import report
from lm import run as runs
from lm.inference import load
from lm.perplexity import perplexity


def evaluate(
    workdir: str | Path, checkpoint: str | int = 'latest', config: ConfigDict | None = None
) -> dict[str, dict[str, Any]]:
    """Returns the perplexity of each evaluation split of a run, whole.

    Args:
        workdir: the run's folder. If it holds a report, its table of splits is replaced.
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
    splits = runs.tokenized_splits(run.config, run.tokenizer, ('valid', 'test'))
    results = {
        name: perplexity(run, model.params, split, label=name) for name, split in splits.items()
    }
    path = workdir / 'report.json'
    if path.exists() and jax.process_index() == 0:
        try:
            written = json.loads(path.read_text()) | {'splits': results}
        except ValueError:
            print(f"'{path}' is damaged and was left as it is; train to its end again to renew it.")
        else:
            report.write(workdir, written, configs.defaults())
    return results
