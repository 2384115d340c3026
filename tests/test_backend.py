"""Compiled programs on the disk. Each case is a process of its own, since JAX's settings are global."""

import os
import subprocess
import sys

import pytest

from lm import backend

PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from lm import backend
jax.jit(lambda x: x + 1)(1)  # Something was compiled before, as in a notebook.
backend._MIN_SECONDS = 0
backend.keep_compiled(Path(sys.argv[1]))
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
value = jax.jit(lambda x: jnp.sin(x) @ jnp.exp(x).T)(jnp.arange(6.0).reshape(2, 3))
found = hits.count('/jax/compilation_cache/cache_hits')
print(found, float(value.sum()).hex())
"""


def compile_in_a_process(folder, **environment):
    """Returns how many programs came from the disk, the program's result, and what was complained of."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(folder)],
        env={k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
        | {'JAX_PLATFORMS': 'cpu'}
        | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    hits, value = done.stdout.split()
    return int(hits), value, done.stderr


def entries(folder):
    return sorted(folder.glob('*-cache'))


@pytest.mark.slow
def test_a_second_process_reads_what_the_first_compiled_and_computes_the_same(tmp_path):
    hits, value, complaint = compile_in_a_process(tmp_path / 'xla')
    assert hits == 0
    assert not complaint
    assert entries(tmp_path / 'xla')
    again, same, complaint = compile_in_a_process(tmp_path / 'xla')
    assert again > 0
    assert same == value
    assert not complaint


@pytest.mark.slow
def test_settings_of_jax_win(tmp_path):
    theirs, ours = tmp_path / 'theirs', tmp_path / 'ours'
    compile_in_a_process(
        ours,
        JAX_COMPILATION_CACHE_DIR=str(theirs),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    )
    assert entries(theirs)
    assert not ours.exists()
    compile_in_a_process(ours, JAX_ENABLE_COMPILATION_CACHE='false')
    assert not ours.exists()


def test_a_folder_that_cannot_be_made_is_said_and_nothing_stops(tmp_path):
    (tmp_path / 'file').write_text('')
    hits, _, complaint = compile_in_a_process(tmp_path / 'file' / 'xla')
    assert hits == 0
    assert complaint.count('\n') == 1
    assert 'are not kept' in complaint


@pytest.mark.slow
def test_a_damaged_entry_is_compiled_again(tmp_path):
    _, value, _ = compile_in_a_process(tmp_path)
    for entry in entries(tmp_path):
        entry.write_bytes(entry.read_bytes()[:10])
    assert compile_in_a_process(tmp_path)[1] == value


@pytest.mark.first_quick
@pytest.mark.parametrize('module', ['lm.training', 'lm', 'lm.config', 'lm.backend'])
def test_an_import_leaves_the_settings_of_jax_alone(module):
    program = f'import {module}, jax; print(jax.config.jax_compilation_cache_dir)'
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == 'None'


@pytest.mark.parametrize('flags', ['', '--xla_backend_optimization_level=0'])
def test_a_level_of_the_users_wins(flags, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', flags)
    level = {'xla_backend_optimization_level': 1}
    assert backend.compiler_options() == (None if flags else level)
