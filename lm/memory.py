"""Memory of a step on CPU, kept for the next step.

XLA asks for a step's arrays in one piece, and frees it at the end. By default glibc takes such a piece from
the kernel and gives it back, so that each step has all its pages made and zeroed anew: 187,000 of them for
the GPT of `experiments/speed`, 15 % of its time (22 % in bfloat16). Here glibc is told to keep it.

Nothing is done where this does not help: where `MALLOC_ARENA_MAX` asks for more, on other systems, on
other C libraries, beside a GPU or TPU, or where the process already uses a large part of the machine's
memory.
"""

import contextlib
import ctypes
import importlib.util
import math
import os
import platform
import re
from pathlib import Path

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_PAD_BYTES = 64 << 20
_NEVER = -1
# Small arrays that live on can split the piece, and the next step can begin before this one's is free: then
# there is a second and a third of it, until there are enough.
_LEAST_SPARE = 4
_ACCELERATORS = (
    'libtpu',
    'jax_cuda12_plugin',
    'jax_cuda13_plugin',
    'jax_rocm60_plugin',
    'jax_rocm7_plugin',
)

# Of control groups, version 2 and 1.
_CONTAINER_LIMITS = (
    Path('/sys/fs/cgroup/memory.max'),
    Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'),
)

_prepared = False


def share_one_arena() -> None:
    """Makes all threads take memory from one place, the only one that can keep large pieces.

    Called at the start of a program, before JAX or numpy is imported: a thread that has an arena by then
    keeps it, and others may come to share that one. `keep` does nothing without this call. Threads that
    ask for much memory at once wait for each other: text becomes tokens about a tenth slower.
    """
    global _prepared
    libc = _glibc()
    chosen = os.environ.get('MALLOC_ARENA_MAX', '1')
    _prepared = (
        chosen == '1' and libc is not None and _only_cpu() and bool(libc.mallopt(_ARENA_MAX, 1))
    )


def keep() -> bool:
    """Keeps what is freed from now on, and returns whether it does: call it when a step has run."""
    libc = _glibc()
    if not _prepared or libc is None or not _spare(_peak_bytes()):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _PAD_BYTES}
    return all(libc.mallopt(name, value) for name, value in settings.items())


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == 'glibc' else None


def _only_cpu() -> bool:
    """Whether JAX will run on CPU, as far as can be said before it is asked (it would start threads)."""
    platforms = os.environ.get('JAX_PLATFORMS')
    if platforms:
        return platforms == 'cpu'
    return not any(importlib.util.find_spec(name) for name in _ACCELERATORS)


def _peak_bytes() -> float:
    """Returns the most memory that this program has had; infinity where that is not told.

    Not `getrusage`, which tells a program that another one has started of that one's memory too.
    """
    with contextlib.suppress(OSError):
        status = Path('/proc/self/status').read_text()
        if found := re.search(r'^Vm(?:HWM|RSS):\s*(\d+) kB$', status, re.MULTILINE):
            return int(found[1]) * 1024
    return math.inf


def _spare(peak: float) -> bool:
    """Whether the machine, or the container, could hold a process of so many bytes several times."""
    return _LEAST_SPARE * peak <= machine_bytes()


def machine_bytes() -> int:
    """Returns the memory of the machine, or of the container that this process is in."""
    limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
    for file in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # There is none, or it is "max".
            limits.append(int(file.read_text()))
    return min(limits)
