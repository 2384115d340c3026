"""Races: several programs do the same work in turn, so that a shared machine's moods fall on all alike.

Each contestant lives in a process of its own, which is stopped while it is not its turn. In each round
all take a sample, in random order. A sample is dropped, and taken anew, by what the machine did and not by
what was measured: when other processes or the hypervisor had more than `FOREIGN_LIMIT` of the cores' time.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

FOREIGN_LIMIT = 0.05
ATTEMPTS = 5  # At one sample; the quietest is kept, and counted as noisy.


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A program that takes part.

    Attributes:
        name: as in tables.
        build: `module:function`, called as function(**options) in the worker; returns facts (JSON) and
            `sample() -> float`, one measured number.
        options: JSON.
        environment: variables of its process.
        flops: floating-point operations of one of the case's units, such as a token; 0 if not counted.
    """

    name: str
    build: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured, and who takes part. Ratios are of the first to each other.

    Attributes:
        name: `group/what`.
        unit: of the samples.
        higher_is_better: whether a large sample is a good one.
        contestants: ours first.
        agree: the name of a fact, a list of numbers, in which all must agree within `tolerance`, or they
            do not do the same work.
        tolerance: relative.
        limit: the case whose first contestant's GFLOP/s are the machine's limit for this one.
        foreign_limit: the part of the cores' time above which a sample is dropped. What the kernel writes
            to the disk for a contestant counts as foreign too.
    """

    name: str
    unit: str
    higher_is_better: bool
    contestants: tuple[Contestant, ...]
    agree: str = ''
    tolerance: float = 0.0
    limit: str = ''
    foreign_limit: float = FOREIGN_LIMIT


class Worker:
    """A contestant's process."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'experiments.speed.worker'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {'TQDM_DISABLE': '1'} | contestant.environment,
            text=True,
            start_new_session=True,  # With its own children, so that all of them can be stopped.
        )
        request = {'build': contestant.build, 'options': contestant.options}
        try:
            self.facts = self._ask(json.dumps(request))
        except RuntimeError:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def sample(self) -> dict[str, float]:
        """Returns `value`, `foreign` (a part of the cores' time) and `peak_mb` so far."""
        self._signal(signal.SIGCONT)
        answer = self._ask('sample')
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._log.close()

    def _ask(self, line: str) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            log = self._log.read().decode(errors='replace')
            raise RuntimeError(f'{self.contestant.name} ended:\n{log[-4000:]}')
        return json.loads(answer)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def workers(
    contestants: tuple[Contestant, ...], say: Callable[[str], None]
) -> Iterator[list[Worker]]:
    """Starts the contestants one after the other, and ends them all."""
    started: list[Worker] = []
    try:
        for contestant in contestants:
            say(f'starting {contestant.name}')
            started.append(Worker(contestant))
        yield started
    finally:
        for worker in started:
            worker.close()


def quiet_sample(worker: Worker, foreign_limit: float = FOREIGN_LIMIT) -> dict[str, Any]:
    """Returns a sample of which others had at most that part, or the least disturbed of a few."""
    taken = []
    for _ in range(ATTEMPTS):
        taken.append(worker.sample())
        if taken[-1]['foreign'] <= foreign_limit:
            break
    return min(taken, key=lambda t: t['foreign']) | {'dropped': len(taken) - 1}


def run(case: Case, rounds: int, seed: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns a record for each contestant.

    Raises:
        ValueError: a contestant does other work than the first.
    """
    order = random.Random(seed)
    with workers(case.contestants, say) as racing:
        check_agreement(case, [worker.facts for worker in racing])
        samples: list[list[dict[str, Any]]] = [[] for _ in racing]
        for number in range(rounds):
            say(f'round {number + 1} of {rounds}')
            for i in order.sample(range(len(racing)), len(racing)):
                samples[i].append(quiet_sample(racing[i], case.foreign_limit))
        facts = [worker.facts for worker in racing]
    ours = [s['value'] for s in samples[0]]
    return [
        {
            'case': case.name,
            'contestant': contestant.name,
            'unit': case.unit,
            'higher_is_better': case.higher_is_better,
            'median': statistics.median(s['value'] for s in taken),
            'spread': spread([s['value'] for s in taken]),
            'samples': [s['value'] for s in taken],
            'noisy': sum(s['foreign'] > case.foreign_limit for s in taken),
            'dropped': sum(s['dropped'] for s in taken),
            'peak_mb': max(s['peak_mb'] for s in taken),
            **ratio(ours, [s['value'] for s in taken], case.higher_is_better),
            'build': contestant.build,
            'options': contestant.options,
            'environment': contestant.environment,
            'flops': contestant.flops,
            'limit': case.limit,
            'facts': fact,
        }
        for contestant, taken, fact in zip(case.contestants, samples, facts, strict=True)
    ]


def check_agreement(case: Case, facts: list[dict[str, Any]]) -> None:
    """Raises ValueError where a contestant's fact `case.agree` is not that of the first."""
    if not case.agree:
        return
    for contestant, fact in zip(case.contestants, facts, strict=True):
        for ours, theirs in zip(facts[0][case.agree], fact[case.agree], strict=True):
            if abs(ours - theirs) > case.tolerance * abs(ours):
                raise ValueError(
                    f'{case.name}: {contestant.name} does other work: {case.agree} is '
                    f'{fact[case.agree]}, and {facts[0][case.agree]} of {case.contestants[0].name}.'
                )


def ratio(ours: list[float], theirs: list[float], higher_is_better: bool) -> dict[str, Any]:
    """Returns how many times better ours is: the median over rounds, and its spread."""
    each = [a / b if higher_is_better else b / a for a, b in zip(ours, theirs, strict=True)]
    return {'ratio': statistics.median(each), 'ratio_spread': spread(each)}


def spread(values: list[float]) -> list[float]:
    """Returns the quartiles around the median."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return [low, high]
