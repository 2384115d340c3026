"""The end of a run: whole splits are evaluated, samples written, and the report put together."""

import json
from pathlib import Path
from typing import Any

import jax

from lm import config as configs
from lm import mesh, profile, report
from lm import workdir as workdirs
from lm.evaluate import measure
from lm.inference import LanguageModel, chosen, parameters
from lm.loop import Loop
from lm.model_flops import flops_per_token
from lm.step import TrainState, evaluated_params


def finish(loop: Loop, state: TrainState, step: int, seconds: float) -> dict[str, Any]:
    """Evaluates whole splits, samples, and writes the report. Returns it."""
    run, config, workdir = loop.run, loop.config, loop.workdir
    finished = loop.ends(step) and not mesh.agree(loop.stop.is_set())
    event = 'finish' if finished else 'stop'
    workdirs.add_history(workdir, event, step, seconds=round(seconds, 1))
    history = workdirs.read_history(workdir)
    params = evaluated_params(state)
    results, tasks, samples = {}, {}, []
    if finished:
        known = loop.evaluated.get(step, {})
        if config.eval.checkpoint != 'latest':
            steps = chosen(loop.checkpoints, config.eval.checkpoint, config, workdir)
            params, known = parameters(run, loop.checkpoints, steps)[1], {}
        splits = {
            task: {name: split for name, split in parts.items() if name in ('valid', 'test')}
            for task, parts in loop.splits.items()
        }
        known = {task: {'valid': result} for task, result in known.items()}
        with loop.ledger.during('evaluation'):
            results, tasks, made = measure(run, params, splits, workdir / 'predictions', known)
        for task, part in run.tasks.items():
            model = LanguageModel(part, params)
            some = made.get(task) or model.samples(part.config.generate, config.seed)
            samples += [sample | ({'task': task} if task else {}) for sample in some]
    measured = loop.meter.summary(flops_per_token(run), list(run.mesh.devices.flat))
    if not loop.meter.rates:  # Nothing was left to train: an earlier start measured it.
        measured = _earlier_throughput(workdir) or measured
    written = {
        'name': workdir.resolve().name,
        'steps': step,
        'parameters': run.steps.parameters,
        'active_parameters': run.steps.active_parameters,
        'seconds': sum(event.get('seconds', 0) for event in history),
        'finished': finished,
        'splits': results,
        'tasks': tasks,
        'corpora': [
            ({'task': task} if task else {}) | found
            for task, each in loop.trained.items()
            for found in each.seen(loop.taken[task])
        ],
        'throughput': measured,
        'goodput': loop.ledger.summary(),
        'profile': profile.summary(workdir),
        'curves': report.curves(workdir),
        'samples': samples,
        'environment': report.environment(),
        'config': configs.to_dict(config),
        'history': history,
    }
    if jax.process_index() == 0:
        report.write(workdir, written, configs.defaults())
    loop.ledger.save(step, finished)
    return written


def _earlier_throughput(workdir: Path) -> dict[str, Any] | None:
    """Returns what the workdir's report says of the speed, or None without a whole report."""
    try:
        return json.loads((workdir / 'report.json').read_text())['throughput']
    except (OSError, ValueError, KeyError):
        return None
