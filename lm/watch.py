"""How the processes of a run watch over each other: beats, facts to compare, and one end for all.

Each process has a connection to a hub in process 0, and sends a beat every few seconds from a thread of its
own, with how far its main thread is; the hub answers. Whoever notes that another one is gone says so in
one line and ends its process, even while the main thread waits for a collective that will not end:

    lm: host b (process 2 of 4) has died: all stop. The same command goes on from step 200.

What must be the same everywhere (config, code, data) is compared by the hub. A process that ends with an
error tells the hub, and all end with its exit code; process 0 prints the line.

No JAX here: lines of JSON over TCP.
"""

import collections
import hashlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import TRY_AGAIN

# Seconds that process 0 has to find the same mistake itself; and to tell all of an end.
_GRACE = 2.0
_SHOWN = 3  # Differences that a line names.
_KINDS = ('beat', 'told', 'facts', 'error', 'bye')  # What processes say, besides hello.


class Place(NamedTuple):
    """Which of the processes this is.

    Attributes:
        address: `HOST:PORT` of process 0, for JAX; the hub is at the port after it.
        count: of processes.
        index: of this one.
    """

    address: str
    count: int
    index: int

    @property
    def hub(self) -> tuple[str, int]:
        """Where the hub is."""
        host, _, port = self.address.rpartition(':')
        return host.strip('[]'), int(port) + (1 if int(port) < 65535 else -1)


class Limits(NamedTuple):
    """Seconds.

    Attributes:
        join: until all processes have come.
        silence: without a beat of a process, or of the hub.
        stall: without any progress of a main thread.
    """

    join: float
    silence: float
    stall: float

    @property
    def interval(self) -> float:
        """Between two beats."""
        return min(self.silence, self.stall) / 6


class _Lines:
    """A socket that carries messages: JSON lists, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self._rest = connection, b''
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        """Sends a message; one that cannot be sent is lost, as the reader will see."""
        try:
            with self._lock:
                self.connection.sendall(json.dumps(message).encode() + b'\n')
        except OSError:
            pass

    def receive(self) -> list[list[Any]] | None:
        """Returns the messages that are there; None at the end of the connection."""
        try:
            found = self.connection.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not found:
            return None
        *lines, self._rest = (self._rest + found).split(b'\n')
        try:
            return [list(json.loads(line)) for line in lines]
        except (TypeError, ValueError):  # No process of ours.
            return None


class Hub:
    """What process 0 knows of all processes, itself among them. Its work is done in a thread."""

    def __init__(self, place: Place, limits: Limits) -> None:
        """Opens the port.

        Raises:
            OSError: it cannot be opened.
        """
        self._place, self._limits = place, limits
        self._names: dict[int, str] = {}
        self._lines: dict[int, _Lines] = {}
        self._heard: dict[int, float] = {}
        self._progress: dict[int, tuple[int, float]] = {}  # marks, and since when
        self._steps: dict[int, int] = {}
        self._facts: dict[str, dict[int, Any]] = collections.defaultdict(dict)
        self._gone: set[int] = set()
        self._error: tuple[float, str, int] | None = None
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(('', place.hub[1]), backlog=place.count + 8)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._started = self._ticked = time.monotonic()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name='hosts: hub', daemon=True)
        self._thread.start()

    def wait(self, limit: float) -> None:
        """Returns when all have left, or after so many seconds."""
        self._thread.join(limit)

    def _work(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(self._limits.interval / 2):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data is not None:
                    self._read(key.data)
            self._tick()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(self._limits.silence)
        lines = _Lines(connection)
        self._selector.register(connection, selectors.EVENT_READ, [lines, None])

    def _read(self, member: list[Any]) -> None:
        lines, index = member
        messages = lines.receive()
        if messages is None:
            self._selector.unregister(lines.connection)
            if index is not None and index not in self._gone:
                self.end(f'{self._name(index)} has died: all stop.', TRY_AGAIN)
            return
        for kind, *values in messages:
            if kind == 'hello' and len(values) == 3:
                self._hello(member, *values)
            elif member[1] is not None and kind in _KINDS:
                self._heard[member[1]] = time.monotonic()
                getattr(self, f'_on_{kind}')(member[1], *values)

    def _hello(self, member: list[Any], index: int, count: int, name: str) -> None:
        if not isinstance(index, int) or not isinstance(count, int):  # No process of ours.
            return
        self._names.setdefault(index, name)
        told = ''
        if count != self._place.count:
            told = f'host {name} is process {index} of {count}, and {self._name(0)}.'
        elif index in self._lines:
            told = f'hosts {self._names[index]} and {name} are both process {index}.'
        if told:
            member[0].send('end', told, 2)
            self.end(told, 2)
            return
        member[1], self._lines[index] = index, member[0]
        self._heard[index] = now = time.monotonic()
        self._progress[index] = 0, now
        if len(self._lines) == self._place.count:
            self._to_all('told', 'names', [self._names[i] for i in range(self._place.count)])

    def _on_beat(self, index: int, marks: int, step: int, takes_steps: bool) -> None:
        if marks != self._progress[index][0] or not takes_steps:
            self._progress[index] = marks, time.monotonic()
        self._steps[index] = step
        self._lines[index].send('beat')

    def _on_told(self, index: int, name: str, value: Any) -> None:
        self._to_all('told', name, value)

    def _on_facts(self, index: int, what: str, facts: dict[str, Any]) -> None:
        known = self._facts[what]
        known[index] = facts
        others = known if index == 0 else [index]
        for other in others if 0 in known else ():
            if known[other] != known[0]:
                self.end(self._difference(what, other), 2)
                return

    def _difference(self, what: str, index: int) -> str:
        here, there = self._facts[what][0], self._facts[what][index]
        keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
        shown = [f'{key} ({there.get(key)!r} there, {here.get(key)!r} here)' for key in keys]
        more = f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''
        return (
            f'{self._name(index)} does not have the same {what} as {self._name(0)}: {digest(there)} there, '
            f'{digest(here)} here: {", ".join(shown[:_SHOWN])}{more}.'
        )

    def _on_error(self, index: int, text: str, code: int) -> None:
        if index == 0:
            self.end(text, code)
        elif self._error is None:  # Process 0 may be about to find the same.
            self._error = time.monotonic() + _GRACE, f'{self._name(index)}: {text}', code

    def _on_bye(self, index: int) -> None:
        self._gone.add(index)
        self._ended = len(self._gone) == self._place.count

    def _tick(self) -> None:
        """Looks who was not heard of."""
        now, limits = time.monotonic(), self._limits
        if now - self._ticked > limits.silence / 2:  # It is this process that stood still.
            self._heard = dict.fromkeys(self._heard, now)
        self._ticked = now
        missing = sorted({*range(self._place.count)} - {*self._lines})
        if missing and now - self._started > limits.join:
            came = ', '.join(f'{self._names[i]} ({i})' for i in sorted(self._lines))
            one = 'process' if len(missing) == 1 else 'processes'
            self.end(
                f'{one} {", ".join(map(str, missing))} of {self._place.count} did not come within '
                f'{limits.join:g} s. Here are: {came}.',
                TRY_AGAIN,
            )
        if self._error and now > self._error[0]:
            self.end(*self._error[1:])
        for index, heard in self._heard.items():
            if index not in self._gone and now - heard > limits.silence:
                self.end(_silent(self._name(index), now - heard), TRY_AGAIN)
        if not missing and not self._gone:
            self._look_for_stalls(now)

    def _look_for_stalls(self, now: float) -> None:
        """One that stands still makes all others wait: it is the one that came least far."""
        longest = now - min(since for _, since in self._progress.values())
        if longest > self._limits.stall:
            least = min(marks for marks, _ in self._progress.values())
            behind = [i for i, (marks, _) in self._progress.items() if marks == least]
            all_wait = len(behind) == self._place.count
            who = 'no host takes a step' if all_wait else f'{self._name(behind[0])} does nothing'
            step = self._steps.get(behind[0], 0)
            self.end(f'{who} since step {step}, for {longest:.0f} s: all stop.', TRY_AGAIN)

    def end(self, text: str, code: int) -> None:
        """Tells all to end, process 0 last."""
        if self._ended:
            return
        self._ended = True
        for index in sorted(self._lines, reverse=True):
            if index == 0:
                time.sleep(
                    min(_GRACE, self._limits.interval)
                )  # Others shall read it while this lives.
            self._lines[index].send('end', text, code)

    def _to_all(self, *message: Any) -> None:
        for lines in self._lines.values():
            lines.send(*message)

    def _name(self, index: int) -> str:
        return name_of(self._names.get(index, '?'), index, self._place.count)


class Member:
    """This process: it sends beats, and ends when the hub says so, or is gone itself."""

    def __init__(
        self, place: Place, limits: Limits, name: str, last_step: Callable[[], int | None]
    ) -> None:
        """Connects to the hub.

        Args:
            place: which process this is.
            limits: of time.
            name: of the host.
            last_step: of the newest checkpoint, for people; None is none.
        """
        self._place, self.limits, self._last_step = place, limits, last_step
        self.name = name_of(name, place.index, place.count)
        self.marks, self.step = 0, 0
        self.takes_steps = False  # Only then it may stand still no longer than `limits.stall`.
        self._told: dict[str, Any] = {}
        self._names = [place.hub[0]]
        self._changed = threading.Condition()
        self._said = False
        self._leaves = False
        self._lines = self._connect()
        self._lines.send('hello', place.index, place.count, name)
        threading.Thread(target=self._work, name='hosts: beats', daemon=True).start()
        self._names = self.hear('names')

    def _connect(self) -> _Lines:
        host, port = self._place.hub
        until = time.monotonic() + self.limits.join
        while True:
            try:
                connection = socket.create_connection((host, port), self.limits.interval)
                break
            except OSError as error:
                if time.monotonic() > until:
                    self.end(
                        f'{self.name}: process 0 did not answer at {host}:{port} within '
                        f'{self.limits.join:g} s: {error}.',
                        TRY_AGAIN,
                    )
                time.sleep(min(0.2, self.limits.interval))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Lines(connection)

    def _work(self) -> None:
        limits = self.limits
        heard = looked = time.monotonic()
        sent = 0.0
        while not self._leaves:
            now = time.monotonic()
            if now - looked > limits.silence:
                self.end(f'{self.name} stood still for {now - looked:.0f} s: it stops.', TRY_AGAIN)
            looked = now
            if now - sent >= limits.interval:
                self._lines.send('beat', self.marks, self.step, self.takes_steps)
                sent = now
            self._lines.connection.settimeout(limits.interval / 2)
            messages = self._lines.receive()
            if messages:
                heard = time.monotonic()
            elif self._leaves:
                return
            elif messages is None:
                self.end(f'{self._first} has died: all stop.', TRY_AGAIN)
            elif time.monotonic() - heard > limits.silence:
                self.end(_silent(self._first, time.monotonic() - heard), TRY_AGAIN)
            for kind, *values in messages or ():
                if kind == 'end':
                    self.end(*values)
                elif kind != 'beat':
                    with self._changed:
                        self._told[values[0]] = values[1]
                        self._changed.notify_all()

    @property
    def _first(self) -> str:
        return name_of(self._names[0], 0, self._place.count)

    def same(self, what: str, facts: Mapping[str, Any]) -> None:
        """Compares facts with those of process 0; where they are not the same all end, sooner or later."""
        self._lines.send('facts', what, dict(facts))

    def tell(self, name: str, value: Any) -> None:
        """Tells all processes something (JSON)."""
        self._lines.send('told', name, value)

    def hear(self, name: str) -> Any:
        """Returns what a process told, when it does; a second time the same."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._told)
            return self._told[name]

    def error(self, text: str, code: int) -> None:
        """Ends all processes for an error of this one: process 0 prints the line."""
        if self._place.index == 0:
            self._say(f'error: {text}')
        self._lines.send('error', text, code)
        self.await_end()
        self._say(f'error: {text}')
        _leave(code)

    def await_end(self) -> None:
        """Waits for the line that ends all, as long as it may take; returns where there is none."""
        time.sleep(self.limits.silence + 3 * self.limits.interval)

    def bye(self) -> None:
        """Leaves, as all do."""
        self._leaves = True
        self._lines.send('bye')

    def end(self, text: str, code: int) -> None:
        """Ends this process with a line (of an error, on process 0 only) and an exit code."""
        guard = threading.Timer(5.0, os._exit, (code,))  # The file system may hang.
        guard.daemon = True
        guard.start()
        if code != TRY_AGAIN:
            if self._place.index == 0:
                self._say(f'error: {text}')
        else:
            step = self._last_step()
            more = '' if step is None else f' The same command goes on from step {step}.'
            self._say(f'lm: {text}{more}')
        _leave(code)

    def _say(self, line: str) -> None:
        with self._changed:
            if not self._said:
                self._said = True
                print(line, file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    """Ends the process from any thread, without waiting for any other."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def name_of(host: str, index: int, count: int) -> str:
    """Returns how a process is called: `host b (process 2 of 4)`."""
    return f'host {host} (process {index} of {count})'


def digest(facts: Mapping[str, Any]) -> str:
    """Returns what tells facts (JSON) apart, in 12 characters."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def newest_step(checkpoints: Path) -> int | None:
    """Returns the newest of a run's checkpoints, by the names of their folders."""
    try:
        return max((int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()), default=None)
    except OSError:
        return None


def _silent(name: str, seconds: float) -> str:
    return f'{name} has not been heard of for {seconds:.0f} s: it died or hangs; all stop.'
