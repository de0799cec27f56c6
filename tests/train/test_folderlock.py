"""A run's folder has one writer: living holders are respected and named, dead ones are not."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from outmodal.errors import UserError
from outmodal.train import folderlock
from outmodal.train.folderlock import FolderLock
from outmodal.train.runfolder import RunFolder
from tests.train.forked import ForkServer


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folderlock, "_PATIENCE", 0.2)


def claim(root: Path, **holder: object) -> None:
    """Change what the holder says of itself."""
    path = root / ".lock"
    path.write_text(json.dumps({**json.loads(path.read_text()), **holder}))


def test_a_living_holder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    held = FolderLock(tmp_path)
    words = rf"process {os.getpid()} on {socket.gethostname()}, job 41, since \d{{4}}-.* --out"
    with pytest.raises(UserError, match=words):
        FolderLock(tmp_path)
    held.check()
    held.release()
    FolderLock(tmp_path).release()


def orphan(job: Mapping[str, Any]) -> None:
    """Hold the folder, leave a child that has the lock's file open, and die."""
    FolderLock(Path(job["root"]))
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    Path(job["root"], "child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def test_children_of_a_killed_holder_do_not_keep_it(
    server: ForkServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    call = {"call": f"{__name__}:orphan", "root": str(tmp_path)}
    assert server.wait(server.start(call, 1, tmp_path / "log")) == [-signal.SIGKILL]
    child = int((tmp_path / "child").read_text())
    try:
        held = FolderLock(tmp_path)
        assert "that process has ended" in caplog.text
        held.check()
        held.release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_earlier_attempt_of_a_job_is_replaced_and_stops_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its node is cut off, not dead: the process is alive, but must not write any more."""
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    cut_off = RunFolder(tmp_path)
    with cut_off.held():
        claim(tmp_path, host="node7", kernel="another")
        with pytest.raises(UserError, match="node7, job 41"):
            FolderLock(tmp_path)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with caplog.at_level(logging.WARNING):
            held = FolderLock(tmp_path)
        assert "an earlier attempt of this job" in caplog.text
        held.check()
        with pytest.raises(UserError, match=f"taken over by process {os.getpid()}"):
            cut_off.check_held()
    held.check()  # what the old one let go of was its own file
    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path)
    held.release()


def test_who_is_taken_for_the_holder_before_it_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lock, but the file still names the process before, which has ended: another one
    puts a new file there."""
    write, calls = folderlock._write, []

    def late(handle: int, holder: Mapping[str, Any]) -> None:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        write(handle, holder)

    monkeypatch.setattr(folderlock, "_write", late)
    held = FolderLock(tmp_path)
    assert len(calls) == 2
    held.check()
    held.release()


def test_another_job_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    held = FolderLock(tmp_path)
    claim(tmp_path, host="node7", kernel="another")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(UserError, match=r"in use by .* on node7, job 41"):
        FolderLock(tmp_path)
    held.release()


def test_a_container_with_the_same_name_is_respected(tmp_path: Path) -> None:
    """Its process numbers mean nothing here."""
    held = FolderLock(tmp_path)
    claim(tmp_path, kernel="another", pid=2**22 + 1)
    with pytest.raises(UserError, match="in use by process 4194305"):
        FolderLock(tmp_path)
    held.release()


def test_clocks_do_not_matter(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    claim(tmp_path, since="1980-01-01 00:00:00 UTC")
    os.utime(tmp_path / ".lock", (0, 0))
    with pytest.raises(UserError, match="since 1980"):
        FolderLock(tmp_path)
    held.release()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    FolderLock(tmp_path).release()
    assert "no locks" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folderlock, "_write", refuse)
    words = rf"cannot write the run folder {tmp_path} on {socket.gethostname()}: .*--out"
    with pytest.raises(UserError, match=words) as caught, RunFolder(tmp_path).held():
        pass
    assert os.strerror(number) in str(caught.value)
