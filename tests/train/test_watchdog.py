"""A run that stands still says where, and ends; the next attempt goes on as if nothing happened."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.train.forked import ForkServer
from tests.train.plans import lines

ENGINE = {"epochs": 2, "checkpoint_every": 2, "strategy": "auto", "hang_minutes": 4.0}


def job(out: Path, data: str, fault: str, **more: Any) -> dict[str, Any]:
    """Runs are patient until their fault has come: machines may be slow."""
    plan = {"out": str(out), "data": data, "engine": dict(ENGINE)}
    hangs = f"{out}.hangs"
    return {"call": "tests.train.faults:run", "fault": fault, "plan": plan, "hangs": hangs, **more}


@pytest.mark.timeout(900)
def test_ranks_that_hang_are_shown_and_the_run_goes_on(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    """Four runs at once: their ranks mostly wait."""
    calm, log = tmp_path / "calm", tmp_path / "log"
    names = ("hang", "library", "stopped0", "stopped1")
    outs = {name: tmp_path / name for name in names}
    server.run(job(calm, data, "none"), 2, log)
    kinds = {
        "hang": ("hang", 1),
        "library": ("library", 1),
        "stopped0": ("stops", 0),
        "stopped1": ("stops", 1),
    }
    pids = {
        name: server.start(
            job(outs[name], data, fault, rank=rank, step=5), 2, tmp_path / f"{name}.log"
        )
        for name, (fault, rank) in kinds.items()
    }
    for rank in (0, 1):
        while not list(outs[f"stopped{rank}"].glob("hang-*.txt")):
            time.sleep(0.05)
        os.kill(pids[f"stopped{rank}"][rank], signal.SIGKILL)
    codes = {name: server.wait(pids[name]) for name in names}
    assert codes["hang"] == codes["library"] == [1, 1]
    assert codes["stopped0"] == [-signal.SIGKILL, 1]
    assert codes["stopped1"] == [1, -signal.SIGKILL]
    shown = {name: (outs[name] / "hang-1.txt").read_text("utf-8") for name in names}
    for name, text in shown.items():
        assert len(list(outs[name].glob("hang-*.txt"))) == 1
        assert text.index("=== rank 0") < text.index("=== rank 1")
        assert "see " + str(outs[name] / "hang-1.txt") in (tmp_path / f"{name}.log").read_text()
    assert "in stuck_here" in shown["hang"]
    assert "after 'step 5'" in shown["hang"]
    assert "stuck inside a library" in shown["library"]
    assert "in stepping" in shown["library"]
    assert "=== rank 0 did not answer" in shown["stopped0"]
    assert "=== rank 1 did not answer" in shown["stopped1"]
    for name in names:
        server.run(job(outs[name], data, "none"), 2, log)
        assert lines(outs[name]) == lines(calm)
        assert not list(outs[name].glob(".watch-*"))


def test_a_report_that_cannot_be_written_ends_the_process_too(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    """What hangs is often the disk of the run's folder: the stacks go to the log."""
    stuck = job(tmp_path / "run", data, "hung_disk", rank=0, step=2)
    assert server.wait(server.start(stuck, 1, tmp_path / "log")) == [1]
    text = (tmp_path / "log").read_text("utf-8")
    assert "in stuck_disk" in text
    assert "in stuck_here" in text


def test_a_rank_that_is_killed_is_missed_by_name_and_remedy(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    dying = job(tmp_path / "run", data, "dies", rank=1, step=3)
    codes = server.wait(server.start(dying, 2, tmp_path / "log"))
    assert codes == [1, -signal.SIGKILL]
    said = (tmp_path / "log").read_text("utf-8")
    assert f"rank 0 on {socket.gethostname()} lost another rank" in said
    assert "same command again" in said


KEY = "train-00050"
PLACE = f"train-000002.tar, sample '{KEY}'"


def reading(out: Path, data: str, fault: str, **stream: int) -> dict[str, Any]:
    stuck = job(out, data, fault, key=KEY)
    stuck["plan"]["stream"] = stream
    return stuck


def test_readers_that_hang_are_shown_with_what_they_read(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    """A thread of the training process, a worker, and both inside a library that keeps Python's
    lock."""
    kinds = {
        "thread": ("reader_sleeps", {"threads": 2}),
        "worker": ("reader_sleeps", {"workers": 2}),
        "library": ("reader_library", {"workers": 2, "threads": 2}),
        "alone": ("reader_library", {"threads": 2}),
    }
    pids = {
        name: server.start(
            reading(tmp_path / name, data, fault, **stream), 1, tmp_path / f"{name}.log"
        )
        for name, (fault, stream) in kinds.items()
    }
    shown = {}
    for name in kinds:
        assert server.wait(pids[name]) == [1]
        while "hang-1.txt" not in (tmp_path / f"{name}.log").read_text("utf-8"):
            time.sleep(0.05)  # "alone" is reported by a child that outlives it
        shown[name] = (tmp_path / name / "hang-1.txt").read_text("utf-8")
        assert PLACE in shown[name]
        assert "=== rank 0" in shown[name]
        assert len(list((tmp_path / name).glob("hang-*.txt"))) == 1
    assert "stuck inside a library" in shown["alone"]
    assert "in stuck_reader" in shown["thread"]
    assert "reader 0." in shown["thread"]
    for name in ("worker", "library"):
        assert "--- loader worker 0" in shown[name]
        assert "--- loader worker 1" in shown[name]
        assert "in facts" in shown[name]  # the stack of the worker that hangs


def test_a_worker_that_is_killed_is_named_with_what_it_read(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    dying = reading(tmp_path / "run", data, "reader_dies", workers=2)
    assert server.wait(server.start(dying, 1, tmp_path / "log")) == [1]
    said = (tmp_path / "log").read_text("utf-8")
    assert "loader worker" in said
    assert "was killed by SIGKILL while it read" in said
    assert PLACE in said
