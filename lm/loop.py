"""The loop of training, in one process: steps, and between them what is logged, evaluated and saved.

It ends after the last step, or where the process is asked to stop.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from lm import config as configs
from lm import hosts, memory, mesh, profile, throughput, tree
from lm import run as runs
from lm.checkpoint import Checkpoints
from lm.data.blend import Blend
from lm.data.features import TokenizedSplit
from lm.data.mixture import Item, Mixture
from lm.errors import RunStopped
from lm.goodput import Ledger
from lm.out_of_memory import Guard, shapes_of
from lm.perplexity import perplexity
from lm.run import Run
from lm.signals import Stop
from lm.step import TrainState, evaluated_params
from lm.terms import experts
from lm.writer import MetricsWriter, Progress, atomic_write, read_metrics


@dataclasses.dataclass
class Pending:
    """Metrics that are still on the device."""

    step: int
    item: Item
    metrics: dict[str, jax.Array]


class Loop:
    """The training loop of one process."""

    def __init__(
        self,
        run: Run,
        workdir: Path,
        splits: dict[str, dict[str, TokenizedSplit]],
        trained: dict[str, Blend],
        mixture: Mixture,
        checkpoints: Checkpoints,
        start: int,
        ledger: Ledger,
        guard: Guard,
        stop: Stop,
    ) -> None:
        self.run, self.workdir, self.splits, self.trained = run, workdir, splits, trained
        self.config, self.mixture, self.checkpoints = run.config, mixture, checkpoints
        self.start, self.ledger, self.guard, self.stop = start, ledger, guard, stop
        self.taken = dict.fromkeys(trained, start)  # Batches of each task.
        self.meter = throughput.Meter()
        self.evaluated: dict[
            int, dict[str, Any]
        ] = {}  # whole evaluations of `valid`, by step and task
        self.compiled: set[str] = set()  # Tasks of which a step was taken.
        # Shapes of batch and rates, by the tasks of which a step was dispatched.
        self.programs: dict[tuple[str, ...], tuple[Any, Any]] = {}

        def learning_rate(step: jax.Array, skipped: jax.Array) -> jax.Array:
            return run.learning_rate(step - skipped)

        self.learning_rate = jax.jit(learning_rate)
        self.profiler = profile.Profiler(workdir, run.config.log, self.compiled_steps)
        self.since: dict[
            str, list[float]
        ] = {}  # sums and counts of metrics since they were last logged
        self.writer: MetricsWriter
        self.progress: Progress

    def train(self, state: TrainState, data_state: dict[str, Any]) -> tuple[TrainState, int]:
        """Takes the steps that are left. Returns the last state and its step.

        The device is never waited for: a step is dispatched before the metrics of the one before it are
        fetched, batches are put on the device ahead, and checkpoints are written in the background.
        """
        config, step = self.config, self.start
        self.since = {name: [*sums] for name, sums in data_state.get('since', {}).items()}
        self.taken |= data_state.get('taken', {})
        items = mesh.prefetch(
            self.mixture.items(data_state),
            config.data.prefetch,
            lambda item: item._replace(batch=mesh.put(item.batch, self.run.mesh)),
        )
        pending, main = None, jax.process_index() == 0
        done = {line['step'] for line in read_metrics(self.workdir) if 'valid/loss' in line}
        with (
            MetricsWriter(self.workdir, config.log, step, enabled=main) as self.writer,
            Progress(config.train.steps, step, enabled=main) as self.progress,
            jax.set_mesh(self.run.mesh),
            self.profiler,
            hosts.steps(),
        ):
            if step and self.evaluates(step) and mesh.agree(main and step not in done):
                self.evaluate(state, step)  # A stop came before it.
            stops = False
            while step < config.train.steps and not stops:
                self.ledger.switch(self.ledger.of_step(step + 1))
                item = self.next_item(items, pending)
                more = self.gradient_norms(state, item)
                if self.logs(step + 1):
                    # Before the step, whose end it would else wait for.
                    more['learning_rate'] = self.learning_rate(state.step, state.skipped)
                state, metrics = self.dispatch(state, item, step + 1)
                step, self.taken = step + 1, item.taken
                hosts.reached(step)
                if pending:
                    self.record(pending, state)
                item = item._replace(batch=None)  # It would stay on the device.
                pending = Pending(step, item, metrics | more)

                stops = self.stops(step)
                evaluates = self.evaluates(step) and not stops
                saves = self.ends(step) or stops or _every(config.checkpoint.every, step)
                if evaluates or saves:
                    # All that a checkpoint's step measured is written before the checkpoint is.
                    self.record(pending, state)
                    pending = None
                    with self.meter.pause():
                        loss = self.evaluate(state, step) if evaluates else None
                        if saves:
                            with self.ledger.during('checkpoint'):
                                self.writer.sync()
                                self.checkpoints.save(step, state, self.data_state(item), loss)
                    self.ledger.save(step)
            if stops:
                self.progress.note(f'Asked to stop: saving step {step}.')
            with self.ledger.during('checkpoint'):
                self.checkpoints.wait()
        self.ledger.switch('report')
        return state, step

    def next_item(self, items: Iterator[Item], pending: Pending | None) -> Item:
        """Returns the next batch; its time is a wait only if the device has nothing to do by then."""
        self.ledger.settle()
        with jax.profiler.TraceAnnotation('data_wait'):
            item = next(items)
        idle = pending is None or pending.metrics['loss'].is_ready()
        self.ledger.settle('data_wait' if idle else '')
        return item

    def dispatch(self, state: TrainState, item: Item, step: int) -> Any:
        """Has the device take a step when it is done with the one before; compiles it at first."""
        if self.profiler.begins(step):
            self.profiler.begin()
        batch, rates, tasks = item.batch, runs.shares(self.run, item), tuple(item.numbers)
        if tasks in self.programs:
            with self.profiler.dispatch(step):
                return self.run.steps.train(state, batch, rates)
        self.programs[tasks] = self.guard.program = shapes_of((batch, rates))
        with self.ledger.during('compile'), self.profiler.dispatch(step):
            return self.run.steps.train(state, batch, rates)

    def compiled_steps(self) -> Iterator[str]:
        """Yields the programs of the steps that were dispatched, as text; they are compiled already."""
        for program in self.programs.values():
            yield self.run.steps.step.lower(self.run.steps.shapes, *program).compile().as_text()

    def data_state(self, item: Item) -> dict[str, Any]:
        """Returns what a checkpoint keeps besides the state of the step (JSON)."""
        since = {name: [*sums] for name, sums in self.since.items()}
        return self.mixture.state(item) | ({'since': since} if since else {})

    def ends(self, step: int) -> bool:
        """Returns whether this is the last step."""
        return step == self.config.train.steps

    def logs(self, step: int) -> bool:
        """Returns whether metrics of this step are written."""
        return _every(self.config.train.log_every, step) or step == 1 or self.ends(step)

    def stops(self, step: int) -> bool:
        """Returns whether this process, or another host's, was asked to stop.

        Several hosts agree on it every few steps only, since each time they wait for each other.
        """
        if jax.process_count() > 1 and not _every(self.config.train.log_every, step):
            return False
        return mesh.agree(self.stop.is_set())

    def evaluates(self, step: int) -> bool:
        """Returns whether `data.valid` is to be evaluated after this step."""
        return any('valid' in splits for splits in self.splits.values()) and (
            self.ends(step) or _every(self.config.train.eval_every, step)
        )

    def gradient_norms(self, state: TrainState, item: Item) -> dict[str, jax.Array]:
        """Returns `TASK/grad_norm` of a joint step where the rates follow them; once a window."""
        options = self.config.multitask
        wanted = self.mixture.joint and options.rates == 'gradient_norm' and self.run.others
        if not wanted or item.step % options.every:
            return {}
        return {
            f'{task}/grad_norm': self.run.steps.gradient_norm(state, {task: fields}, item.step)
            for task, fields in item.batch.items()
        }

    def record(self, pending: Pending, state: TrainState) -> None:
        """Writes the metrics of a step, and stops the run if too many in a row were skipped."""
        config = self.config
        with jax.profiler.TraceAnnotation('metrics'):
            fetched = jax.device_get(pending.metrics)
        metrics = {name: float(value) for name, value in fetched.items()}
        if self.profiler.ends(pending.step):
            with self.meter.pause(), self.ledger.during('profile'):
                self.profiler.end()
        if not self.compiled.issuperset(pending.item.numbers):
            self.meter.restart()  # Compilation is not speed, and each task has its own.
            self.compiled.update(pending.item.numbers)
        else:
            self.meter.add(metrics['tokens'])
        if pending.step == self.start + 1:
            self.checkpoints.prepare(self.run.steps.shapes)
            memory.keep()
        if metrics['skipped_in_a_row'] >= config.train.max_bad_steps:
            raise RunStopped(self.post_mortem(pending, state, metrics))
        values = self.measured(pending.item, metrics)
        if self.logs(pending.step):
            with jax.profiler.TraceAnnotation('log'):
                self.log(pending, metrics, values)

    def log(self, pending: Pending, metrics: dict[str, float], values: dict[str, float]) -> None:
        """Writes a line of metrics: the losses in `values`, and what else is known of the step."""
        of_float16 = ('loss_scale',) if 'loss_scale' in metrics else ()
        kept = ('learning_rate', 'grad_norm', 'skipped', *of_float16)
        values |= {name: metrics[name] for name in kept}
        shown = {name: values[name] for name in ('loss', 'learning_rate')}
        rates = self.corpora_rates(pending.item)
        if speed := self.meter.read():
            values['tokens_per_second'] = shown['tokens_per_second'] = speed
        values = {f'train/{name}': value for name, value in values.items()}
        self.writer.write(pending.step, values | rates)
        self.ledger.save(pending.step)
        self.progress.update(pending.step, **shown)

    def corpora_rates(self, item: Item) -> dict[str, float]:
        """Returns what part of the rows each corpus is, of the tasks of a step, where that changes."""
        return {
            '/'.join(filter(None, ('corpora', task, name))): rate
            for task, number in item.numbers.items()
            if self.trained[task].changes
            for name, rate in self.trained[task].rates(number).items()
        }

    def measured(self, item: Item, metrics: dict[str, float]) -> dict[str, float]:
        """Returns the losses to be logged: those of the step, or of several tasks since the last log."""
        shown = {'nats': 'loss', 'error': 'loss', 'correct': 'accuracy'}
        found = {}
        for name, value in metrics.items():
            term, slash, kind = name.rpartition('/')
            if experts.is_of(name):
                found[name] = value
                continue
            if kind in shown:
                found[f'{term}{slash}{shown[kind]}'] = value
        if not self.run.others:
            loss = self.config.loss
            if len(found) > 2 or loss.label_smoothing or loss.z_loss:
                found['objective'] = metrics['loss']
            return found
        norms = {
            task: metrics.get(
                f'{task}/grad_norm', math.nan if self.mixture.joint else metrics['grad_norm']
            )
            for task in item.numbers
        }
        self.mixture.observe(
            item.step, {task: (found[f'{task}/loss'], norm) for task, norm in norms.items()}
        )
        for name, value in [('loss', metrics['loss']), *found.items()]:
            total = self.since.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1
        logs = _every(self.config.train.log_every, item.step + 1)
        since, self.since = self.since, {} if logs else self.since
        means = {name: total / count for name, (total, count) in since.items()}
        return means | {f'{task}/rate': rate for task, rate in item.rates.items()}

    def evaluate(self, state: TrainState, step: int) -> float:
        """Evaluates `data.valid`, writes the result, and returns the loss."""
        params, batches = evaluated_params(state), self.config.eval.batches
        with self.ledger.during('evaluation'):
            results = {
                task: perplexity(
                    part, params, self.splits[task]['valid'], batches, f'{task} valid'.lstrip()
                )
                for task, part in self.run.tasks.items()
                if 'valid' in self.splits[task]
            }
        if not batches:
            self.evaluated[step] = results
        values, notes = {}, []
        for task, result in results.items():
            kept = ('loss', 'perplexity', 'accuracy', 'pearson')
            prefix = f'{task}/' if task else ''
            values |= {
                f'valid/{prefix}{name}': value
                for name, value in result.items()
                if value is not None and (name in kept or experts.is_of(name))
            }
            notes.append(f'{task} {_described(result)}'.lstrip())
        if self.run.others:
            # Of those that are validated; evenly, where none of them is trained.
            weights = {task: sum(configs.task_weights(self.config)[task]) for task in results}
            total = sum(weights.values())
            values['valid/loss'] = sum(
                (weights[task] / total if total else 1 / len(results)) * result['loss']
                for task, result in results.items()
            )
        self.writer.write(step, values)
        self.progress.note(f'step {step}: validation {"; ".join(notes)}')
        return values['valid/loss']

    def post_mortem(self, pending: Pending, state: TrainState, metrics: dict[str, float]) -> str:
        """Writes what is known of the bad step to `nonfinite.json`; returns the line for a person."""
        item = pending.item
        batch = mesh.put(self.mixture.batch(item.numbers), self.run.mesh)
        rates = runs.shares(self.run, item)
        norms = jax.device_get(self.run.steps.norms(state, batch, rates, pending.step - 1))
        batches = {
            task: self.trained[task].describe(number) for task, number in item.numbers.items()
        }
        path = self.workdir / 'nonfinite.json'
        content = {
            'step': pending.step,
            'batch': batches.get('', batches),
            'metrics': {name: repr(value) for name, value in metrics.items()},
        } | {
            name: {
                parameter: repr(float(norm))
                for parameter, norm in zip(tree.paths(part), jax.tree.leaves(part), strict=True)
            }
            for name, part in norms.items()
        }
        if jax.process_index() == 0:
            atomic_write(path, json.dumps(content, indent=1) + '\n')
        return (
            f'step {pending.step}: the gradient was not finite {self.config.train.max_bad_steps} steps '
            f'in a row (batch {item.step}). Norms and the batch are in {path}. '
            'Lower config.optimizer.learning_rate in a new --workdir, or look at the data.'
        )


def _described(result: Mapping[str, Any]) -> str:
    """Returns a line's worth of an evaluation."""
    loss = f'loss {result["loss"]:.4f}'
    if 'perplexity' in result:
        return f'{loss} nats a token, perplexity {result["perplexity"]:.2f}'
    name = 'accuracy' if 'accuracy' in result else 'pearson'
    return f'{loss}, {name} {result[name]:.3f}' if result[name] is not None else loss


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
