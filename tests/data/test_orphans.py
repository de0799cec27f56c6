"""Processes of a killed program: they end with it, and its successor waits until they have."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from outmodal.data.claim import claimed
from outmodal.data.orphans import at_work, wait_for_orphans
from outmodal.data.tasks import run_tasks
from tests.data.processes import running

ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")


def lie_down(folder: Path, seconds: float) -> None:
    """Leave this process's number in a folder."""
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)


def kill_oneself(folder: Path) -> None:
    """Be killed in the middle of two tasks, of which one is done."""
    for _ in run_tasks(lie_down, [(folder, 0), (folder, 600)], 1):
        os.kill(os.getpid(), signal.SIGKILL)


def test_processes_of_a_killed_program_end(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.data.test_orphans import kill_oneself\n"
        "kill_oneself(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    (pid,) = (int(path.name) for path in tmp_path.iterdir())
    while running(pid):
        time.sleep(0.01)


def write_half(folder: Path, begun: Connection, go: Connection) -> None:
    with at_work(folder):
        (folder / "half").touch()
        begun.send(None)
        go.recv()
        (folder / "half").unlink()


def start_orphan(folder: Path) -> tuple[BaseProcess, Connection]:
    """A process that has written half, and the link that lets it go on."""
    begun, told = FORK.Pipe()
    heard, go = FORK.Pipe()
    orphan = FORK.Process(target=write_half, args=(folder, told, heard))
    orphan.start()
    begun.recv()
    return orphan, go


@contextmanager
def going_on(orphan: BaseProcess, go: Connection) -> Iterator[None]:
    """Let it go on a moment after this is entered, and see it end in peace."""
    later = threading.Timer(0.5, go.send, (None,))
    later.start()
    yield
    later.join()
    orphan.join()
    assert orphan.exitcode == 0


def test_the_successor_waits_for_those_at_work(tmp_path: Path) -> None:
    with going_on(*start_orphan(tmp_path)):
        wait_for_orphans(tmp_path)
        assert not (tmp_path / "half").exists()


def test_who_claims_a_folder_waits_too(tmp_path: Path) -> None:
    with claimed(tmp_path, ".work", {"asked": 1}):
        started = start_orphan(tmp_path)
    with going_on(*started), claimed(tmp_path, ".work", {"asked": 1}):
        assert not (tmp_path / "half").exists()


def begin_late(folder: Path, parent: int) -> None:
    """Come to work when the parent is gone."""
    while running(parent):
        time.sleep(0.01)
    with at_work(folder):
        (folder / "written").touch()


def start_and_die(folder: Path, told: Connection) -> None:
    child = FORK.Process(target=begin_late, args=(folder, os.getpid()))
    child.start()
    told.send(child.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_whose_parent_is_gone_begins_nothing(tmp_path: Path) -> None:
    heard, told = FORK.Pipe()
    parent = FORK.Process(target=start_and_die, args=(tmp_path, told))
    parent.start()
    pid = heard.recv()
    parent.join()
    while running(pid):
        time.sleep(0.01)
    assert not (tmp_path / "written").exists()
