"""Being asked to stop: noted, and heeded where nothing is lost."""

import contextlib
import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# By os.write: the signal may come in the midst of a print.
_SAID = b'lm: asked to stop, at the end of this step or stage; once more kills.\n'


class Stop(threading.Event):
    """Is set by SIGTERM, as a preempted machine sends it, or Ctrl-C.

    A context manager; outside of it, after the first signal and after `close`, signals do what they did
    before. Python heeds none inside of a compilation, or while it waits for other hosts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> 'Stop':
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, _number: int, _frame: Any) -> None:
        self.set()
        self.close()
        with contextlib.suppress(OSError):  # Ctrl-C may have ended who reads it: `2>&1 | tee log`.
            os.write(2, _SAID)

    def close(self) -> None:
        """Leaves signals to whom they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self.close()
