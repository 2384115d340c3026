"""Makes Intel's MKL take an AMD processor for Intel's, and so its fast path.

MKL asks itself whether the processor is Intel's; a library that is loaded first answers in its place. This
is for a figure beside the honest one: users of PyTorch do not run with it.
"""

import os
import subprocess
import tempfile
from pathlib import Path

_SOURCE = 'int mkl_serv_intel_cpu_true(void) { return 1; }\n'
_LIBRARY = Path(tempfile.gettempdir()) / f'lm-mkl-{os.getuid()}.so'
# The environment of a process in which MKL does not check; `build` makes the library.
BYPASS = {'LD_PRELOAD': str(_LIBRARY)}


def build() -> None:
    """Compiles the library; needs a C compiler (`cc`)."""
    partial = _LIBRARY.with_suffix(f'.{os.getpid()}')
    subprocess.run(
        ['cc', '-shared', '-fPIC', '-x', 'c', '-', '-o', str(partial)],
        input=_SOURCE,
        text=True,
        check=True,
    )
    partial.replace(_LIBRARY)
