"""Several tasks as one stream of batches: which one each step is of, and at what rates.

What a step gets is a pure function of the seed, the step, and for rates that follow the training, of
what was measured at least one window of `every` steps earlier. So nothing waits for the device, and a run
that is resumed goes on as if it had not stopped: all of that is in `Mixture.state`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from lm.config import MultitaskConfig
from lm.data import pipeline
from lm.errors import InputError, lookup

# Of rates that follow the training, the part that is spread evenly: no task is ever left alone.
_EVEN = 0.1
MODES = ('alternating', 'joint')


class Facts(NamedTuple):
    """What rates are made of; float64 [tasks].

    Attributes:
        first: mean loss in the first window that the task was seen in; NaN before.
        last: mean loss in its latest window; NaN before.
        norm: mean norm of its gradient there; NaN before.
    """

    first: np.ndarray
    last: np.ndarray
    norm: np.ndarray


# --- rates that depend on the step only: (tasks, law, part of the run that is done) -> [tasks] --------


class Law(NamedTuple):
    """What they read of `config.multitask`, and for corpora of `config.data`."""

    temperature: float
    limit: int


Done = float | np.ndarray  # Of many steps at once [steps, 1].


def fixed(tasks: 'Tasks', law: Law, done: Done) -> np.ndarray:
    """Returns the weights."""
    return tasks.weights


def proportional(tasks: 'Tasks', law: Law, done: Done) -> np.ndarray:
    """Returns weights times rows, as if the sources were one (Raffel et al. 2020, section 3.5.2)."""
    return tasks.weights * _rows(tasks, law)


def temperature(tasks: 'Tasks', law: Law, done: Done) -> np.ndarray:
    """Returns weights times rows^(1 / temperature) (Arivazhagan et al. 2019)."""
    return tasks.weights * _rows(tasks, law) ** (1 / law.temperature)


def scheduled(tasks: 'Tasks', law: Law, done: Done) -> np.ndarray:
    """Returns weights on a straight line from the first to the last step."""
    return (1 - done) * tasks.weights + done * tasks.final_weights


def _rows(tasks: 'Tasks', law: Law) -> np.ndarray:
    return np.minimum(tasks.rows, law.limit or np.inf)


# --- rates that follow the training: (tasks, options, facts) -> [tasks] -------------------------------


def progress(tasks: 'Tasks', options: MultitaskConfig, facts: Facts) -> np.ndarray:
    """Returns weights times how much of the first loss is left, against the mean of all tasks.

    The inverse training rate of Chen et al. 2018, https://arxiv.org/abs/1711.02257, to their power alpha.
    """
    left = _known(facts.last / facts.first)
    return tasks.weights * (left / left.mean()) ** options.asymmetry


def gradient_norm(tasks: 'Tasks', options: MultitaskConfig, facts: Facts) -> np.ndarray:
    """Returns rates by which gradients are as long as `progress` wants them (Chen et al. 2018: GradNorm).

    They step towards that by a gradient of the rates; it can be solved for, which is what this does.
    """
    return progress(tasks, options, facts) / np.maximum(_known(facts.norm), 1e-12)


def uncertainty(tasks: 'Tasks', options: MultitaskConfig, facts: Facts) -> np.ndarray:
    """Returns weights / loss (Kendall et al. 2018, https://arxiv.org/abs/1705.07115).

    They learn a variance v a task, in loss / v + log v, whose minimum is at v = loss.
    """
    return tasks.weights / np.maximum(_known(facts.last), 1e-12)


def _known(values: np.ndarray) -> np.ndarray:
    """Returns values, with the mean of the others for those that are not known; or ones."""
    known = np.isfinite(values) & (values > 0)
    return np.where(known, values, values[known].mean() if known.any() else 1.0)


BY_STEP = {
    'fixed': fixed,
    'proportional': proportional,
    'temperature': temperature,
    'scheduled': scheduled,
}
BY_LOSS: dict[str, Callable[['Tasks', MultitaskConfig, Facts], np.ndarray]] = {
    'progress': progress,
    'gradient_norm': gradient_norm,
    'uncertainty': uncertainty,
}


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks of a run, or the corpora of a task.

    Attributes:
        names: of the tasks.
        weights: float64 [tasks], at the first step.
        final_weights: float64 [tasks], at the last.
        rows: float64 [tasks], of what each is trained on.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    final_weights: np.ndarray
    rows: np.ndarray


class Item(NamedTuple):
    """What one step gets.

    Attributes:
        step: steps before it.
        numbers: the number of each task's batch in it.
        batch: fields, or by task fields.
        rates: of all tasks; their sum is 1.
        taken: batches that were taken of each task, with this.
    """

    step: int
    numbers: dict[str, int]
    batch: Any
    rates: dict[str, float]
    taken: dict[str, int]


class Mixture:
    """The training batches of a run, of one task or several."""

    def __init__(
        self,
        datasets: Mapping[str, grain.MapDataset],
        tasks: Tasks,
        options: MultitaskConfig,
        steps: int,
        seed: int,
        ahead: int,
    ) -> None:
        """Of one task, whose name is '', batches are fields; of several, `{task: fields}`.

        Args:
            datasets: batches of each task.
            tasks: their facts.
            options: mode and rates.
            steps: of the run.
            seed: of what is drawn.
            ahead: batches that are taken ahead of the step.

        Raises:
            InputError: mode or rates are not known, or would have to be known before they are measured.
        """
        lookup(dict.fromkeys(MODES), options.mode, 'config.multitask.mode')
        lookup(BY_STEP | BY_LOSS, options.rates, 'config.multitask.rates')
        self.follows = options.rates in BY_LOSS
        if self.follows and options.every < ahead + 4:
            raise InputError(
                f'config.multitask.every = {options.every} is too short: batches are made {ahead} steps '
                f'ahead (config.data.prefetch); the least is {ahead + 4}.'
            )
        self.joint = options.mode == 'joint'
        self._datasets, self._tasks, self._options = datasets, tasks, options
        self._steps, self._seed = steps, seed
        self._law = Law(options.temperature, options.limit)
        unknown = [math.nan] * len(tasks.names)
        # Sums and counts of the window that is being measured; and what it is about.
        self._window: dict[str, list[float]] = {}
        self._facts = Facts(*(np.array(unknown) for _ in Facts._fields))
        self._plan: dict[int, list[float]] = {}  # Rates, by window.

    def items(self, state: Mapping[str, Any]) -> Iterator[Item]:
        """Yields what each step gets, from the state on; `{'next_index': 0}` is that of the first."""
        step = state['next_index']
        taken = dict.fromkeys(self._tasks.names, step) | dict(state.get('taken', {}))
        self._window = {k: list(v) for k, v in state.get('window', {}).items()}
        if 'facts' in state:
            self._facts = Facts(*(_floats(values) for values in state['facts']))
        self._plan = {int(window): rates for window, rates in state.get('plan', {}).items()}
        streams: dict[str, Iterator[tuple[int, Any]]] = {}
        while True:
            rates = self.rates(step)
            numbers, batch = {}, {}
            for name in self._tasks.names if self.joint else [self._drawn(step, rates)]:
                if name not in streams:
                    streams[name] = pipeline.batches(self._datasets[name], taken[name])
                numbers[name], batch[name] = next(streams[name])
                taken[name] += 1
            shares = dict(zip(self._tasks.names, rates.tolist(), strict=True))
            yield Item(step, numbers, batch.get('', batch), shares, dict(taken))
            step += 1

    def rates(self, step: int) -> np.ndarray:
        """Returns the rates of a step, float64 [tasks]; their sum is 1."""
        options = self._options
        if not self.follows:
            rates = BY_STEP[options.rates](self._tasks, self._law, step / max(1, self._steps - 1))
        else:
            rates = np.array(self._plan.get(step // options.every, self._tasks.weights))
        return rates / rates.sum()

    def _drawn(self, step: int, rates: np.ndarray) -> str:
        if len(rates) == 1:
            return self._tasks.names[0]
        number = np.random.default_rng([self._seed % 2**64, step]).random()
        return self._tasks.names[int(np.searchsorted(np.cumsum(rates)[:-1], number, side='right'))]

    def observe(self, step: int, measured: Mapping[str, tuple[float, float]]) -> None:
        """Takes note of (loss, norm of the gradient) of the tasks of a step; each step once, in order.

        A norm that was not measured is NaN.
        """
        if not self.follows:
            return
        for name, values in measured.items():
            window = self._window.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            for place, value in zip((0, 2), values, strict=True):
                if math.isfinite(value):
                    window[place] += value
                    window[place + 1] += 1
        if (step + 1) % self._options.every == 0:
            self._end_window(step // self._options.every)

    def _end_window(self, window: int) -> None:
        """Sets the rates of the window after the next one, whose batches may be under way."""
        first, last, norm = (values.copy() for values in self._facts)
        for place, name in enumerate(self._tasks.names):
            loss, losses, length, lengths = self._window.get(name, (0.0,) * 4)
            if losses:
                last[place] = loss / losses
                first[place] = last[place] if math.isnan(first[place]) else first[place]
            if lengths:
                norm[place] = length / lengths
        self._window, self._facts = {}, Facts(first, last, norm)
        rates = BY_LOSS[self._options.rates](self._tasks, self._options, self._facts)
        some = self._tasks.weights > 0
        rates = (1 - _EVEN) * rates / rates.sum() + _EVEN * some / some.sum()
        self._plan = {w: r for w, r in self._plan.items() if w > window} | {
            window + 2: rates.tolist()
        }

    def state(self, item: Item) -> dict[str, Any]:
        """Returns a JSON value: all that `items` goes on from after this item, once it was observed."""
        state: dict[str, Any] = {'next_index': item.step + 1}
        if len(self._tasks.names) > 1:
            state['taken'] = item.taken
        if self.follows:
            state['window'] = {name: [*sums] for name, sums in self._window.items()}
            state['facts'] = [
                [None if math.isnan(value) else value for value in values.tolist()]
                for values in self._facts
            ]
            state['plan'] = {str(window): rates for window, rates in self._plan.items()}
        return state

    def batch(self, numbers: Mapping[str, int]) -> Any:
        """Makes batches again."""
        batch = {name: self._datasets[name][number] for name, number in numbers.items()}
        return batch.get('', batch)


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values])
