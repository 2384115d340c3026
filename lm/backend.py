"""What is set in JAX before the first compilation."""

import os
import sys
from pathlib import Path

import jax

_MAX_BYTES = 2 << 30  # Then those not used for the longest time go.
_LEVEL = 'xla_backend_optimization_level'
_MIN_SECONDS = 0.1  # What compiles faster is not worth a file.


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs in a folder, so that the same program compiles once, not once a process.

    What stands in JAX's own settings wins: another folder in `JAX_COMPILATION_CACHE_DIR`, or none
    with `JAX_ENABLE_COMPILATION_CACHE=false`. A folder that cannot be written is said once, and the run
    goes on.

    Args:
        folder: made if it is not there. Several processes may share it.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _complain(folder, error.strerror)
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        _complain(folder, 'no permission')
        return
    jax.config.update('jax_compilation_cache_max_size', _MAX_BYTES)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_SECONDS)
    jax.config.update('jax_compilation_cache_dir', str(folder))


def platform() -> str:
    """Returns cpu | gpu | tpu: of the current mesh, whose devices need not be here, or this machine's."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def compiler_options() -> dict[str, int] | None:
    """Returns options of `jax.jit`: on CPU, programs compile in two thirds of the time, and run as fast.

    What takes time there are matrix products, which are XLA's own and not compiled; the rest LLVM's first
    level makes as fast as its third. A level in `XLA_FLAGS` wins. The platform is that of the
    current mesh.
    """
    if platform() != 'cpu' or _LEVEL in os.environ.get('XLA_FLAGS', ''):
        return None
    return {_LEVEL: 1}


def _complain(folder: Path, reason: str) -> None:
    print(f"lm: compiled programs are not kept: '{folder}': {reason}.", file=sys.stderr)
