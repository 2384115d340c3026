"""Being asked to stop: noted, and heeded where nothing is lost."""

import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# By os.write: the signal may come in the midst of a print.
_SAID = b'lm: asked to stop, at the end of this step or stage; once more kills.\n'


class Stop(threading.Event):
    """Is set by SIGTERM, as a preempted machine sends it, or Ctrl-C; a second one does what it did before.

    A context manager; outside of it, and after `close`, signals do what they did before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> 'Stop':
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, _: Any) -> None:
        self.set()
        signal.signal(number, self._before[number])
        os.write(2, _SAID)

    def close(self) -> None:
        """Leaves signals to whom they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self.close()
