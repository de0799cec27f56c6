"""The child that speaks for a process that is gone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from outmodal.train.lastwords import LastWords


def test_it_is_silent_where_the_process_lives(tmp_path: Path) -> None:
    said = tmp_path / "said"
    words = LastWords(said.touch)
    words.cancel()
    assert not said.exists()


def test_a_child_that_was_killed_is_no_mistake_of_the_run(tmp_path: Path) -> None:
    words = LastWords((tmp_path / "said").touch)
    os.kill(words._child, signal.SIGKILL)
    os.waitid(os.P_PID, words._child, os.WEXITED | os.WNOWAIT)
    words.cancel()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_to_the_whole_group_do_not_end_it_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    said, fork = tmp_path / "said", os.fork

    def asked() -> int:
        child = fork()
        if not child:
            os.kill(os.getpid(), number)
        return child

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", asked)
        words = LastWords(said.touch)
    os.close(words._link)  # as the end of this process would
    os.waitpid(words._child, 0)
    assert said.exists()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {number}
