"""A profile of some steps by `jax.profiler`, in the workdir's `profile/`.

JAX writes `*.xplane.pb`, which XProf and TensorBoard's profile plugin read, and beside it
`*.trace.json.gz`, which https://ui.perfetto.dev opens as it is. Its option `create_perfetto_trace` writes
the same events once more under another name, so it is left off. Python's own calls are not traced: the
parts of the loop are named instead (`lm.profile_table.HOST`).

What XLA calls a step's operations does not say what they do: a fusion may hold a matrix product. So the
categories of the compiled step's operations are kept in `operations.json` beside the trace, for
`lm.profile_table`.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from lm.config import LogConfig
from lm.profile_table import STEP, categories, read_operations, table
from lm.writer import atomic_write

FOLDER = 'profile'
OPERATIONS = 'operations.json'


class Profiler:
    """Traces the steps `config.log.profile`; a context, at whose end no trace goes on."""

    def __init__(
        self, workdir: Path, log: LogConfig, programs: Callable[[], Iterable[str]]
    ) -> None:
        """Begins nothing yet.

        Args:
            workdir: the run's folder.
            log: which steps, and on which hosts.
            programs: the compiled steps as HLO text, asked for when a trace is done.
        """
        self._folder, self._programs, self.on = workdir / FOLDER, programs, False
        traces = log.profile and (jax.process_index() == 0 or log.profile_all_hosts)
        self._first, self._last = log.profile if traces else (1, 0)

    def begins(self, step: int) -> bool:
        """Returns whether a trace begins before this step."""
        return not self.on and self._first <= step <= self._last

    def begin(self) -> None:
        """Begins to trace."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        self._folder.mkdir(exist_ok=True)
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self.on = True

    def dispatch(self, step: int) -> contextlib.AbstractContextManager:
        """Returns the annotation of a step's dispatch: a step's, if it is one of those asked for."""
        if self.on and step <= self._last:
            return jax.profiler.StepTraceAnnotation(STEP, step_num=step)
        return jax.profiler.TraceAnnotation('dispatch')

    def ends(self, step: int) -> bool:
        """Returns whether the trace is over when this step's metrics are there."""
        return self.on and step >= self._last

    def end(self) -> None:
        """Writes the trace."""
        self.on, self._first, self._last = False, 1, 0
        jax.profiler.stop_trace()
        found = {}
        for text in self._programs():
            module, operations = categories(text)
            found[module] = found.get(module, {}) | operations
        if session := newest(self._folder.parent):
            atomic_write(session / OPERATIONS, json.dumps(found))

    def __enter__(self) -> 'Profiler':
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if not self.on:
            return
        if kind is None:
            self.end()
        else:  # The error is what counts.
            with contextlib.suppress(Exception):
                self.end()


def summary(workdir: Path) -> dict[str, Any] | None:
    """Returns what a workdir's last trace says, or None without one.

    Returns:
        What `lm.profile_table.table` returns, and from the workdir `folder`, and `trace` for Perfetto, of
        the same host.
    """
    session = newest(workdir)
    try:
        found = session and table(session, read_operations(session / OPERATIONS))
    except Exception as error:  # noqa: BLE001  a kill may have cut it short: no reason to lose a report
        print(f"lm: the profile in '{session}' cannot be read: {error}", file=sys.stderr)
        return None
    if not found:
        return None
    trace = session / f'{found["of"]}.trace.json.gz'
    trace = trace if trace.is_file() else session
    return found | {'folder': FOLDER, 'trace': str(trace.relative_to(workdir))}


def how_to_open(workdir: Path, found: Mapping[str, Any]) -> str:
    """Returns a line for a person: where a profile is, and what opens it."""
    first, last = found['steps']
    return (
        f'Profile of steps {first} to {last}: {workdir / found["trace"]} (open it in ui.perfetto.dev), or: '
        f'pip install xprof && xprof --logdir={workdir / found["folder"]}'
    )


def newest(workdir: Path) -> Path | None:
    """Returns the folder of a workdir's last trace, or None without one."""
    return max((workdir / FOLDER).glob('plugins/profile/*/'), default=None)
