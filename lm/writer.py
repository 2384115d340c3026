"""Writes what a run measures: metrics.jsonl, TensorBoard, Weights & Biases, and the progress line.

`metrics.jsonl` is the one that counts: the report is drawn from it, and a run that was killed and
resumed leaves the same lines as one that was not (but for `time` and speed).
"""

import contextlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from lm.config import LogConfig
from lm.errors import InputError

METRICS_FILE = 'metrics.jsonl'


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: numpy and JAX scalars as numbers, NaN and infinities as None.

    >>> plain({'loss': np.float32(2.5), 'norm': math.inf, 'layers': ('causal', 'full')})
    {'loss': 2.5, 'norm': None, 'layers': ['causal', 'full']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, 'tolist'):  # A numpy or JAX array, or a scalar of one.
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal (full disk, no permission) into one line with the path."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror or error}.") from error


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Writes a file whole or not at all: into a temporary file beside it, synced, then renamed.

    Args:
        path: where to; missing folders are made.
        content: bytes, or text that is written as UTF-8.

    Raises:
        InputError: the system refuses, as on a full disk; what stood at `path` stands there still.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    return path


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's `metrics.jsonl`, or [] where there is none.

    A line that is not whole JSON, as `kill -9` or a full disk leaves behind, is left out. A value that
    was not finite is NaN.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and 'step' in line:
            lines.append({k: math.nan if v is None else v for k, v in line.items()})
    return lines


class MetricsWriter:
    """Writes metrics of one run, a line a step. A context manager.

    Args:
        workdir: the run's folder.
        log: which others to write besides `metrics.jsonl`.
        resume_step: the step of the checkpoint that training goes on from, 0 for a fresh start.
            Lines after it are dropped, since those steps will be run again.
        enabled: False on all hosts but the first: they share the folder, and write nothing.

    Raises:
        InputError: the folder cannot be written, or `wandb` is asked for and not installed.
    """

    def __init__(
        self, workdir: str | Path, log: LogConfig, resume_step: int, *, enabled: bool = True
    ) -> None:
        self._file = self._tensorboard = self._wandb = None
        if not enabled:
            return
        workdir = Path(workdir)
        self._wandb = _wandb(workdir, log.wandb) if log.wandb else None
        path = workdir / METRICS_FILE
        kept = [line for line in read_metrics(workdir) if line['step'] <= resume_step]
        atomic_write(path, ''.join(_json_line(line) for line in kept))
        self._path = path
        with _naming(path):
            self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115 (closed by close)
        self._tensorboard = _tensorboard(workdir, resume_step) if log.tensorboard else None

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes numbers by name, such as `train/loss`, measured at a step.

        The line is flushed: a kill loses nothing that was written. TensorBoard's events follow in a
        thread of its own, every few seconds.
        """
        if self._file is None:
            return
        metrics = plain(metrics)
        with _naming(self._path):
            self._file.write(_json_line({'step': int(step), **metrics, 'time': time.time()}))
            self._file.flush()
        numbers = {name: math.nan if value is None else value for name, value in metrics.items()}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                if math.isfinite(value):  # TensorBoard has no place for others.
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=int(step))

    def sync(self) -> None:
        """Returns when the lines are on the disk, or in the bucket that is mounted there (gcsfuse)."""
        if self._file is not None:
            with _naming(self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes everything. May be called twice."""
        if self._file is not None:
            with _naming(self._path):
                self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._file = self._tensorboard = self._wandb = None

    def __enter__(self) -> 'MetricsWriter':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(plain(line), allow_nan=False) + '\n'


def _tensorboard(workdir: Path, resume_step: int) -> Any:
    from tensorboardX import SummaryWriter  # Slow to import, and not always wanted.

    return SummaryWriter(
        str(workdir / 'tensorboard'),
        # TensorBoard then hides what an earlier start had written from this step on.
        purge_step=resume_step + 1 if resume_step else None,
        max_queue=10_000,  # The loop would wait for a full one.
        flush_secs=5,
        # Two starts in one second would have the same file otherwise.
        filename_suffix=f'.from_step_{resume_step}',
    )


def _wandb(workdir: Path, project: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            f"config.log.wandb = '{project}' needs Weights & Biases: pip install wandb"
        ) from error
    # The id is kept, so that a resumed run goes on in the same curves.
    name = workdir / 'wandb' / 'run_id'
    if not name.exists():
        atomic_write(name, uuid.uuid4().hex)
    return wandb.init(
        project=project,
        name=workdir.name,
        dir=str(workdir),
        id=name.read_text(),
        resume='allow',
        config=json.loads(path.read_text()) if (path := workdir / 'config.json').exists() else None,
    )


def short(number: float) -> str:
    """Returns a count with three digits: 950, 18.2k, 124M."""
    for limit, divisor, letter in (
        (1e3, 1, ''),
        (1e6, 1e3, 'k'),
        (1e9, 1e6, 'M'),
        (1e12, 1e9, 'B'),
    ):
        if abs(number) < limit * 0.9995:
            return f'{number / divisor:.3g}{letter}'
    return f'{number:.2e}'


def duration(seconds: float) -> str:
    """Returns a time as people read it: 0:42, 12:05, 3:20:00, 2 d 4:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days} d {hours}:{minutes:02}:{rest:02}'
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


# How the values of the progress line are written; any other is `name 0.123`.
_FORMATS: dict[str, Callable[[float], str]] = {
    'loss': lambda value: f'loss {value:.3f}',
    'learning_rate': lambda value: f'lr {value:.1e}',
    'tokens_per_second': lambda value: f'{short(value)} tok/s',
}


class Progress:
    """The live line on stderr: steps, loss, learning rate, tokens a second, time left.

    In a terminal and in a notebook it is a bar (tqdm). Anywhere else, as in a log file, it is a plain
    line now and then, `lines` in all, and no carriage returns. A context manager.

    Args:
        total: steps of the whole run.
        initial: steps that were done before, when it resumes.
        enabled: False on all hosts but the first: nothing is shown.
        lines: about how many lines there are where there is no terminal.
        file: where to write. None is stderr.
        clock: seconds; from where the time left is reckoned.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        *,
        enabled: bool = True,
        lines: int = 40,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from tqdm.auto import tqdm  # The notebook's bar in a notebook, the terminal's elsewhere.

        self._total, self._enabled, self._clock = total, enabled, clock
        self._file = file or sys.stderr
        self._stride = max(1, math.ceil((total - initial) / lines))
        self._next_line = initial + 1
        self._first: tuple[int, float] | None = None
        self._bar = None
        in_notebook = any('notebook' in cls.__module__ for cls in tqdm.__mro__)
        if enabled and (in_notebook or self._file.isatty()):
            self._bar = tqdm(
                total=total,
                initial=initial,
                file=self._file,
                dynamic_ncols=True,
                miniters=1,
                mininterval=0.1,
                bar_format='{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{desc}',
            )

    def update(self, step: int, **values: float) -> None:
        """Shows that `step` steps are done, with values such as `loss=` and `tokens_per_second=`."""
        parts = [
            _FORMATS.get(name, lambda value, name=name: f'{name} {value:.4g}')(float(value))
            for name, value in values.items()
        ]
        if (left := self._time_left(step)) is not None:
            parts.append(f'{duration(left)} left')
        if self._bar is not None:
            self._bar.set_description_str(''.join(f' · {part}' for part in parts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif step >= self._next_line or step >= self._total:
            self._next_line = step - step % self._stride + self._stride
            width = len(str(self._total))
            self.note(' · '.join([f'step {step:{width}}/{self._total}', *parts]))

    def _time_left(self, step: int) -> float | None:
        """Seconds, from the speed since the first update: the compilation before it is not counted."""
        now = self._clock()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now)
            return None
        done, seconds = step - self._first[0], now - self._first[1]
        return max(0, self._total - step) * seconds / done

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        elif self._enabled:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands. May be called twice."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
