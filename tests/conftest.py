"""Tests run on CPU, with 8 virtual devices, and with a token cache of their own."""

import ctypes
import os
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

from tests.processes import QUICK

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count=8 {QUICK}'
os.environ['LM_CACHE_DIR'] = os.environ.get('LM_TEST_CACHE_DIR') or tempfile.mkdtemp()

if 'LM_TEST_PROGRAMS' not in os.environ:  # The workers of xdist inherit it.
    _programs = tempfile.TemporaryDirectory()
    os.environ['LM_TEST_PROGRAMS'] = _programs.name

# A shell has what it starts in the background ignore SIGINT, and so would all processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402  after its settings

# A program that a test has compiled is not compiled again, in whatever test or process it is met.
jax.config.update('jax_compilation_cache_dir', os.environ['LM_TEST_PROGRAMS'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)


def pytest_configure(config):
    # What another process has half written is compiled here.
    config.addinivalue_line('filterwarnings', 'ignore:Error reading persistent compilation cache')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leaves the first case of a test of many to the quick lane."""
    seen = set()
    for item in items:
        if item.get_closest_marker('first_quick'):
            if item.function in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(item.function)


# The same examples in each run, however slow the machine.
hypothesis.settings.register_profile('lm', deadline=None, derandomize=True)
hypothesis.settings.load_profile('lm')


# A compiled program takes three or more maps of memory. A process may have 65,530 (Linux's
# vm.max_map_count), and ends where it asks for another; with this many it also has more than a gigabyte.
MOST_MAPS = 3_000


@pytest.fixture(scope='module', autouse=True)
def _few_programs():
    """Lets go of compiled programs when there are many, and of the memory that compiling them took."""
    yield
    maps = Path('/proc/self/maps')
    if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()
        if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
            libc.malloc_trim(0)


@pytest.fixture(scope='module')
def two_devices():
    """Batches are split as on eight, and eight threads do not fight for two cores."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:2]
        patch.setattr(jax, 'devices', lambda: first)
        patch.setattr(jax, 'device_count', lambda: len(first))
        yield


@pytest.fixture(scope='module')
def no_charts():
    """Pages have empty charts: Matplotlib takes more time than a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('lm.report.chart', lambda *_, **__: '')
        yield


@pytest.fixture(scope='session')
def shared_data():
    """The folder of real data sets; skips where there is none, except in CI."""
    from lm.data import source

    folder = source.data_dir()
    if not folder.is_dir() and not os.environ.get('CI'):
        pytest.skip(f"needs the data sets of $LM_DATA_DIR, and '{folder}' does not exist")
    return folder
