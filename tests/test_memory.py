"""Memory of a step that is kept. Each case is a process of its own, since malloc's settings are global."""

import os
import subprocess
import sys

import pytest

from lm import memory

PROGRAM = """
import resource
import statistics
import sys
from lm import memory
memory._ACCELERATORS = ()
if 'share' in sys.argv:
    memory.share_one_arena()
import jax
step = jax.jit(lambda x: jax.numpy.outer(x, x + 1) @ x)  # An array of 64 MB on the way.
x = jax.numpy.ones(4096)
step(x).sum().block_until_ready()
kept = memory.keep()
pages = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    value = step(x).sum().block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, statistics.median_low(pages[20:]), float(value).hex())
"""

pytestmark = pytest.mark.skipif(
    sys.platform != 'linux' or memory._glibc() is None, reason='The C library is not glibc.'
)


def pages_of_a_step(*arguments):
    """Returns whether memory is kept, how many pages one of the later steps has made, and its result."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith(('MALLOC_', 'GLIBC_'))}
        | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages, value = done.stdout.split()
    return kept == 'True', int(pages), value


@pytest.mark.slow
def test_kept_memory_is_used_again_and_changes_no_number():
    kept, pages, value = pages_of_a_step('share')
    again, many, same = pages_of_a_step()
    assert kept
    assert not again
    assert pages < many / 10
    assert value == same


def test_nothing_is_kept_beside_an_accelerator(monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda,cpu')
    assert not memory._only_cpu()
    monkeypatch.delenv('JAX_PLATFORMS')
    monkeypatch.setattr(memory, '_ACCELERATORS', ('json',))
    assert not memory._only_cpu()
    monkeypatch.setattr(memory, '_ACCELERATORS', ('no_such_module',))
    assert memory._only_cpu()


def test_nothing_is_kept_by_a_process_that_fills_the_machine():
    assert memory._spare(memory.machine_bytes() // 4)
    assert not memory._spare(memory.machine_bytes() // 3)


def test_nothing_is_kept_by_a_process_that_fills_its_container(monkeypatch, tmp_path):
    limit = tmp_path / 'memory.max'
    monkeypatch.setattr(memory, '_CONTAINER_LIMITS', (limit, tmp_path / 'no_such_file'))
    limit.write_text('max\n')
    assert memory._spare(1_000_000)
    limit.write_text('1000000\n')
    assert not memory._spare(1_000_000)


def test_a_program_is_as_large_as_it_is_and_not_as_the_one_that_started_it():
    program = 'from lm import memory; print(memory._peak_bytes())'
    held = b'1' * 300_000_000
    environment = os.environ | {'MALLOC_ARENA_MAX': '1'}
    found = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, check=True, env=environment
    )
    assert 1_000_000 < int(found.stdout) < len(held) <= memory._peak_bytes()
