"""Following a job, with a cluster that is played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from outmodal.errors import UserError
from outmodal.launch.slurm.follow import JobState, Tail, follow


def played(
    *states: JobState | None, also: Callable[[int], None]
) -> Callable[[int], JobState | None]:
    """A cluster that goes through `states`, one a question; `also` is called with its number."""
    queue = list(enumerate(states))

    def answer(_: int) -> JobState | None:
        number, state = queue.pop(0)
        also(number)
        return state

    return answer


def test_new_lines_and_states_are_shown_until_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier job\n")

    def write(number: int) -> None:
        with log.open("a") as file:
            file.write(f"line {number}\n")

    end = follow(
        7,
        [log, tmp_path / "absent"],
        pause=0,
        state_of=played(
            JobState("PENDING", "Priority", 0, 0),
            JobState("RUNNING", "None", 0, 0),
            None,
            JobState("RUNNING", "None", 1, 0),
            JobState("FAILED", "NonZeroExitCode", 1, 3),
            also=write,
        ),
    )
    assert end.code == 3
    said = capsys.readouterr()
    assert said.out == "".join(f"line {i}\n" for i in range(5))
    assert "PENDING (Priority)" in said.err
    assert said.err.count("RUNNING") == 2
    assert "FAILED" in said.err


def test_a_cluster_that_answers_no_more(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not answered"):
        follow(7, [tmp_path / "log"], pause=0, patience=0, state_of=lambda _: None)


def test_a_tail_takes_up_where_it_was(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    assert tail.read() == ""
    (tmp_path / "log").write_bytes(b"a\xff")
    assert tail.read() == "a�"
    assert tail.read() == ""
