"""Goodput: the share of a run's wall time that trained it, and what took the rest.

A `Ledger` charges every moment of a start to one part, so that the parts add up to the time that has
passed. What earlier starts took is kept in the workdir's `goodput.jsonl`, a line a start, which is written
over as the start goes on; the time from one line's end to the next start is downtime. So what a process
that was killed did after its line was last written (at each log, evaluation and checkpoint) is downtime
too, and nothing is charged twice.

Nothing here waits for the device. The loop's time is that of training, in which it mostly waits for a
step's metrics; a wait for the next batch counts as one only if the device has finished by its end, since
else it was busy all along.

Google's ml-goodput-measurement has the same aim, but keeps its events in Google Cloud Logging and needs a
project there; nothing of it works offline.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lm.writer import atomic_write

FILE = 'goodput.jsonl'

# Part -> what it is, in the order of the report.
PARTS = {
    'training': 'training steps',
    'repeated': 'steps done again after a restart',
    'data_wait': 'waiting for batches',
    'evaluation': 'evaluation',
    'checkpoint': 'checkpoints, as far as the loop waited',
    'imports': 'start: importing',
    'tokenizer': 'start: tokenizer',
    'data': 'start: text to tokens',
    'build': 'start: building, first parameters',
    'compile': 'start: compiling the step',
    'restore': 'start: restoring a checkpoint',
    'start': 'start: the rest',
    'profile': 'writing a profile',
    'report': 'samples and report',
    'downtime': 'between a stop and the next start',
}


class Ledger:
    """The time of one start, by part.

    Attributes:
        part: what the time that passes now is charged to. After an error, where it was.
        seconds: by part, of this start, up to the last `settle`.
    """

    def __init__(
        self,
        began: float | None = None,
        clock: Callable[[], float] = time.time,
        counter: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begins to count.

        Args:
            began: when the command was started, seconds since 1970, where that was before now: until now it
                imported.
            clock: seconds since 1970.
            counter: seconds of any zero, which never go back.
        """
        now = clock()
        self._counter, self._since = counter, counter()
        self._began = now if began is None else min(began, now)
        self.part = 'start'
        self.seconds = {'imports': now - self._began}
        self._earlier: list[dict[str, Any]] = []
        self._path: Path | None = None
        self._place = 0  # of this start's line in the file, bytes
        self._line: dict[str, Any] = {'step': 0, 'finished': False}

    def settle(self, part: str = '') -> None:
        """Charges the time since the last call to a part; '' is the one that goes on."""
        now = self._counter()
        part = part or self.part
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def switch(self, part: str) -> None:
        """Charges what follows to a part."""
        self.settle()
        self.part = part

    @contextlib.contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Charges the block to a part, by whose name a profile shows it too."""
        earlier = self.part
        self.switch(part)
        with jax.profiler.TraceAnnotation(part):
            yield
        self.switch(earlier)  # Not after an error: `part` then says where it was.

    def of_step(self, step: int) -> str:
        """Returns the part that a step belongs to: `repeated` if an earlier start came as far."""
        reached = max((line['step'] for line in self._earlier), default=0)
        return 'training' if step > reached else 'repeated'

    def open(self, workdir: Path) -> None:
        """Reads what earlier starts took, and from now on keeps this one's beside it."""
        self._earlier = read(workdir)
        if (
            self._earlier
        ):  # In one process a second run was not yet imported for while the first went on.
            overlap = _end(self._earlier[-1]) - self._began
            shared = max(0.0, min(overlap, self.seconds['imports']))
            self._began += shared
            self.seconds['imports'] -= shared
        text = ''.join(json.dumps(line) + '\n' for line in self._earlier)
        self._path, self._place = atomic_write(workdir / FILE, text), len(text.encode())

    def save(self, step: int | None = None, finished: bool = False) -> None:
        """Writes this start's line over itself; without `open` nothing is written.

        Args:
            step: the last that was measured; None: as before.
            finished: the run has come to its end, so that the time after it is no downtime.
        """
        self.settle()
        self._line['step'] = self._line['step'] if step is None else step
        self._line['finished'] |= finished
        if self._path is None:
            return
        # A disk that is full is told of by what must be written.
        with contextlib.suppress(OSError), open(self._path, 'r+b') as file:
            file.seek(self._place)
            file.write(json.dumps(self._now()).encode() + b'\n')
            file.truncate()

    def summary(self) -> dict[str, Any]:
        """Returns `summary` of all starts, this one as it is."""
        self.settle()
        return summary([*self._earlier, self._now()])

    def _now(self) -> dict[str, Any]:
        seconds = {part: round(value, 6) for part, value in self.seconds.items()}
        return {'began': self._began, **self._line, 'seconds': seconds}


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of a workdir's file, those that are whole; [] without one."""
    path, lines = workdir / FILE, []
    if not path.exists():
        return []
    for text in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and {'began', 'step', 'finished', 'seconds'} <= line.keys():
                lines.append(line)
    return lines


def _end(start: Mapping[str, Any]) -> float:
    return start['began'] + sum(start['seconds'].values())


def summary(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what became of the wall time of a run's starts, in their order.

    >>> first = {'began': 0.0, 'step': 9, 'finished': False, 'seconds': {'start': 2.0, 'training': 6.0}}
    >>> second = {'began': 10.0, 'step': 20, 'finished': True, 'seconds': {'training': 6.0}}
    >>> found = summary([first, second])
    >>> found['seconds'], found['share'], found['parts']
    (16.0, 0.75, {'training': 12.0, 'start': 2.0, 'downtime': 2.0})

    Args:
        starts: lines of the file: when one began (seconds since 1970), the last step that it measured,
            whether the run was finished, and seconds by part.

    Returns:
        `seconds`, the sum of all parts; `share`, of the part `training`; the number of `starts`; `parts`.
    """
    total: dict[str, float] = {}
    for start in starts:
        for part, seconds in start['seconds'].items():
            total[part] = total.get(part, 0.0) + seconds
    for start, after in zip(starts, starts[1:], strict=False):
        gap = after['began'] - _end(start)
        if not start['finished'] and gap > 0:
            total['downtime'] = total.get('downtime', 0.0) + gap
    parts = {part: total[part] for part in PARTS if total.get(part)}
    wall = sum(parts.values())
    share = parts.get('training', 0.0) / wall if wall else 0.0
    return {'seconds': wall, 'share': share, 'starts': len(starts), 'parts': parts}
