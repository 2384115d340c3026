"""Runs the command line as a person does: in a process of its own, or, to be quick, in this one."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

from tests.processes import ROOT, environment

# A model that trains in seconds, logged and evaluated and saved as often as a test may want.
TINY = {
    'data.test': '',
    'data.length': 16,
    'data.batch_size': 8,
    'tokenizer.kind': 'bytes',
    'model.num_layers': 1,
    'model.embed_dim': 16,
    'model.num_heads': 2,
    'model.dropout': 0.1,
    'schedule.warmup_steps': 2,
    'train.steps': 30,
    'train.log_every': 1,
    'train.eval_every': 5,
    'checkpoint.every': 3,
    'generate.samples': 1,
    'generate.max_tokens': 4,
    'log.tensorboard': False,
}


class Result(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def write_text(path: Path, lines: int = 300) -> Path:
    """Writes a text that is easy to learn, and the same each time."""
    words = (
        'the',
        'cat',
        'sat',
        'on',
        'a',
        'mat',
        'and',
        'then',
        'ran',
        'to',
        'see',
        'some',
        'dog',
    )
    text = (' '.join(words[i * j % len(words)] for j in range(12)) for i in range(lines))
    path.write_text('\n'.join(text))
    return path


def arguments(text: Path, workdir: Path, **overrides: object) -> list[str]:
    """Returns the options of a tiny run; overrides write `.` as `__`: `train__steps=4`."""
    keys = {'data.train': f'text:{text}', 'data.valid': f'text:{text}', **TINY}
    keys |= {key.replace('__', '.'): value for key, value in overrides.items()}
    return [
        '--config=configs/base.py',
        f'--workdir={workdir}',
        *(f'--config.{key}={value}' for key, value in keys.items()),
    ]


def start(options: list[str], devices: int = 1, program: str = '') -> subprocess.Popen:
    """Starts `python -m lm.main`, or a program that ends in it, on so many virtual devices."""
    command = [sys.executable, *(['-c', program] if program else ['-m', 'lm.main']), *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(devices, flags=''),  # As people run it.
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(options: list[str], devices: int = 1, program: str = '') -> Result:
    """Runs it to its end."""
    process = start(options, devices, program)
    out, err = process.communicate()
    return Result(process.returncode, out, err)


def call(options: list[str]) -> Result:
    """Runs it in this process."""
    import lm.training  # noqa: F401  grain defines flags of its own
    from lm import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        flagsaver.flagsaver(),
        mock.patch.object(sys, 'argv', ['lm.main', *options]),  # config_flags reads it
    ):
        try:
            main.main(main.parse_flags(sys.argv))
        except SystemExit as error:
            code = error.code
    return Result(code, out.getvalue(), err.getvalue())


def config_of(options: list[str]) -> ConfigDict:
    """Returns the config that the options make."""
    import lm.training  # noqa: F401
    from lm import main

    with (
        contextlib.chdir(ROOT),
        flagsaver.flagsaver(),
        mock.patch.object(sys, 'argv', ['lm.main', *options]),
    ):
        main.parse_flags(sys.argv)
        return flags.FLAGS['config'].value


def snapshot(folder: Path) -> dict[str, bytes]:
    """Returns the content of each file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock'
    }


def metrics(workdir: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl, without what no two runs share: time and speed."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in ('time', 'train/tokens_per_second')}
        for line in lines
    ]


def assert_refused(result: Result, *parts: str) -> None:
    """Asserts exit code 2 and one line on stderr that holds all parts, and perhaps what it underlines."""
    assert result.code == 2, result
    assert 'Traceback' not in result.err + result.out
    assert result.err.startswith('error: '), result.err
    _, *underlined = result.err.splitlines()
    assert not underlined or (len(underlined) == 2 and set(underlined[1]) == set(' ^')), result.err
    for part in parts:
        assert part in result.err, (part, result.err)


needs_root = pytest.mark.skipif(
    sys.platform != 'linux' or os.geteuid() != 0, reason='only root may mount a small disk'
)


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int):
    """Mounts a disk of so many kB; skips the test where that is not allowed."""
    folder.mkdir()
    size = f'size={kilobytes}k'
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f'cannot mount a small disk: {mounted.stderr.strip()}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '--lazy', str(folder)], check=True)
