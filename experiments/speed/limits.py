"""The machine's own limits: what no program on it can exceed."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.speed import mkl
from experiments.speed.race import Case, Contestant

_SIZE = 2048
_FLOATS = 1 << 26  # 256 MB: far more than any cache.


def matmul(dtype: str, repeats: int = 20) -> tuple[dict[str, Any], Callable[[], float]]:
    """A product of two 2048 x 2048 matrices by PyTorch (MKL or oneDNN); a sample is the best of 20.

    The best and not the median, since it is a limit that is looked for.
    """
    a, b = (torch.randn(_SIZE, _SIZE, dtype=getattr(torch, dtype)) for _ in range(2))
    a @ b

    def sample() -> float:
        return max(2 * _SIZE**3 / _seconds(lambda: a @ b) / 1e9 for _ in range(repeats))

    return {'torch': torch.__version__, 'threads': torch.get_num_threads()}, sample


def matmul_jax(dtype: str, repeats: int = 20) -> tuple[dict[str, Any], Callable[[], float]]:
    """The same by XLA, with float32 sums; a sample is GFLOP/s."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (_SIZE, _SIZE)).astype(dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(a, a).block_until_ready()

    def sample() -> float:
        return max(
            2 * _SIZE**3 / _seconds(lambda: product(a, a).block_until_ready()) / 1e9
            for _ in range(repeats)
        )

    return {'jax': jax.__version__}, sample


def matmul_numpy(repeats: int = 20) -> tuple[dict[str, Any], Callable[[], float]]:
    """The same by NumPy (OpenBLAS), float32; a sample is GFLOP/s."""
    a = np.random.default_rng(0).standard_normal((_SIZE, _SIZE), np.float32)

    def sample() -> float:
        return max(2 * _SIZE**3 / _seconds(lambda: a @ a) / 1e9 for _ in range(repeats))

    return {'numpy': np.__version__}, sample


def bandwidth(repeats: int = 10) -> tuple[dict[str, Any], Callable[[], float]]:
    """A copy of 256 MB by PyTorch on all cores; a sample is GB/s, read and written."""
    source = torch.ones(_FLOATS)
    target = torch.empty(_FLOATS)

    def sample() -> float:
        return max(
            2 * 4 * _FLOATS / _seconds(lambda: target.copy_(source)) / 1e9 for _ in range(repeats)
        )

    return {'torch': torch.__version__}, sample


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


_HERE = 'experiments.speed.limits'


def _products(dtype: str) -> Case:
    options = {'dtype': dtype}
    contestants = [
        Contestant('XLA', f'{_HERE}:matmul_jax', options),
        Contestant('PyTorch', f'{_HERE}:matmul', options),
        Contestant('PyTorch, MKL bypassed', f'{_HERE}:matmul', options, mkl.BYPASS),
    ]
    if dtype == 'float32':
        contestants.append(Contestant('NumPy', f'{_HERE}:matmul_numpy'))
    return Case(f'limit/matmul {dtype}', 'GFLOP/s', True, tuple(contestants))


CASES = [
    _products('float32'),
    _products('bfloat16'),
    Case('limit/memory bandwidth', 'GB/s', True, (Contestant('copy', f'{_HERE}:bandwidth'),)),
]
