"""Being asked to stop."""

import os
import signal

import pytest

from lm.signals import Stop


@pytest.mark.parametrize('first', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_next_one_does_what_it_did(first, capfd):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stop() as stop:
        assert not stop.is_set()
        signal.raise_signal(first)
        assert stop.is_set()
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.startswith('lm: asked to stop')


def test_it_is_noted_where_nobody_reads_that(monkeypatch):
    """Ctrl-C ends `tee` too, in `python -m lm.main ... 2>&1 | tee log`."""

    def gone(*_):
        raise BrokenPipeError

    with Stop() as stop, monkeypatch.context() as patch:
        patch.setattr(os, 'write', gone)
        signal.raise_signal(signal.SIGINT)
    assert stop.is_set()
