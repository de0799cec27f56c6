"""Being asked to stop, by signals that come once, twice, or at the very end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from outmodal.errors import StoppedEarly, UserError
from outmodal.train import signals
from outmodal.train.signals import StopRequest, ends_after_stop

KINDS = (signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is taken for one that ends with its command."""
    monkeypatch.setattr(signals, "_program", False)
    ends_after_stop()


def stopped_by(error: Exception) -> list[object]:
    def run() -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.asked
            raise error

    with pytest.raises(type(error)):
        run()
    return [signal.getsignal(kind) for kind in KINDS]


@pytest.mark.usefixtures("program")
def test_a_second_signal_does_not_kill_a_program_that_was_stopped() -> None:
    """A launcher passes one on twice: it may come between the run's end and the program's."""
    assert stopped_by(StoppedEarly("stopped")) == [signal.SIG_IGN] * 2
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("program")
def test_a_program_that_fails_can_be_killed() -> None:
    assert stopped_by(UserError("wrong")) == [signal.SIG_DFL] * 2


def test_whoever_calls_it_gets_the_handlers_back() -> None:
    assert stopped_by(StoppedEarly("stopped")) == [signal.SIG_DFL] * 2
