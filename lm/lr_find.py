"""The learning-rate range test (Smith 2017, https://arxiv.org/abs/1506.01186)."""

import dataclasses
import json
import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lm import config as configs
from lm import mesh, optimizers, plots
from lm import run as runs
from lm import workdir as workdirs
from lm.objectives import loss_of_tokens
from lm.step import Steps
from lm.writer import Progress, atomic_write

LOWEST, HIGHEST = 1e-6, 3.0
MOST_STEPS = 200
DIVERGED = 3.0  # times the lowest loss so far, above the start


def find(config: ConfigDict, workdir: str | Path) -> float:
    """Trains briefly while the learning rate rises from 1e-6 to 3, and suggests one.

    Writes `lr_find.png` and `lr_find.json` into the workdir, which is otherwise left as it is: no
    checkpoint is saved. It ends when the loss diverges, or after 200 steps (or `config.train.steps`).

    Returns:
        The suggested peak learning rate: see `plots.suggest_learning_rate`.
    """
    config = configs.parse(config)
    workdir = Path(workdir)
    device_mesh = runs.check_mesh(config)
    workdirs.open_workdir(workdir, config)
    if config.tasks:  # A step of one of them would not compare with the next.
        each = dataclasses.replace(config.multitask, mode='joint', rates='fixed')
        config = dataclasses.replace(config, multitask=each)
    text = runs.build_tokenizer(config, workdir)
    run = runs.build(config, text, device_mesh)
    splits = {
        task: runs.tokenized_splits(part.config, text, ('train',))
        for task, part in run.tasks.items()
    }
    total = max(20, min(MOST_STEPS, config.train.steps))

    def learning_rate(step):
        return LOWEST * (HIGHEST / LOWEST) ** (step / (total - 1))

    optimizer = optimizers.build(config.optimizer, learning_rate)
    items = mesh.prefetch(
        runs.mixture(run, runs.blends(run, splits)).items({'next_index': 0}),
        config.data.prefetch,
        lambda item: item._replace(batch=mesh.put(item.batch, run.mesh)),
    )
    points: list[tuple[float, float]] = []
    with jax.set_mesh(run.mesh), Progress(total, enabled=jax.process_index() == 0) as progress:
        steps = Steps(config, run.steps.model.vocab_size, run.mesh, optimizer)
        state = steps.init()
        for step in range(total):
            item = next(items)
            state, metrics = steps.train(state, item.batch, runs.shares(run, item))
            loss, skipped = float(metrics['loss']), int(metrics['skipped'])
            if not math.isfinite(loss):
                break
            # A step that is skipped (float16) does not move the schedule.
            rate = float(learning_rate(step + (metrics['skipped_in_a_row'] > 0) - skipped))
            if not metrics['skipped_in_a_row']:
                points.append((rate, loss))
            progress.update(step + 1, loss=loss, learning_rate=rate)
            if loss > points[0][1] and loss > DIVERGED * min(loss for _, loss in points):
                break
    suggestion = plots.suggest_learning_rate([r for r, _ in points], [x for _, x in points])
    content = {'suggestion': suggestion, 'points': points}
    if jax.process_index() != 0:
        return suggestion
    atomic_write(workdir / 'lr_find.json', json.dumps(content) + '\n')
    label = 'loss (nats per token)' if loss_of_tokens(configs.to_dict(config)) else 'loss'
    plots.learning_rate_plot(points, suggestion, workdir / 'lr_find.png', label)
    return suggestion
