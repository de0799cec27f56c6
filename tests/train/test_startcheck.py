"""Ranks that do not start alike end at once, with one message that names rank, host and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from outmodal.train.startcheck import source_hash
from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer

CALL = "tests.train.faults:run"


def refused(server: ForkServer, log: Path, fault: str, out: str, data: str, **more: Any) -> str:
    """What rank 0 says; all ranks must leave with 2, long before any timeout."""
    plan = {"out": out, "data": data, "engine": {"max_steps": 2, "timeout": 5.0}}
    job = {"call": CALL, "fault": fault, "plan": plan, **more}
    codes = server.wait(server.start(job, 2, log))
    text = log.read_text("utf-8")
    assert codes == [2, 2], text
    said = [line for line in text.splitlines() if "rank 1" in line]
    assert len(said) == 1, text
    return said[0]


def test_another_configuration(server: ForkServer, data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    other = {"optim": {"lr": 0.5}, "seed": 3}
    text = refused(server, tmp_path / "log", "other_plan", str(out), data, other=other)
    assert "another configuration than rank 0" in text
    assert "optim.lr is 0.5 there, 0.01 on rank 0; seed is 3 there, 0 on rank 0" in text
    assert "same recipe" in text
    assert not out.exists()


def test_other_code(server: ForkServer, data: str, tmp_path: Path) -> None:
    text = refused(server, tmp_path / "log", "other_code", str(tmp_path / "run"), data)
    assert "another outmodal than rank 0" in text
    assert source_hash()[:12] in text
    assert "0123456789ab" in text
    assert "Install the same code on every node" in text


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """One folder for each rank; relative paths mean another thing in each, as on two nodes."""
    places = [tmp_path / "here", tmp_path / "there"]
    for place in places:
        place.mkdir()
    return [str(place) for place in places]


def test_a_data_set_that_one_host_does_not_see(
    server: ForkServer, data: str, tmp_path: Path, folders: list[str]
) -> None:
    shutil.copytree(data, Path(folders[0]) / "data")
    run, log = str(tmp_path / "run"), tmp_path / "log"
    text = refused(server, log, "elsewhere", run, "data", folders=folders)
    assert "on node1 (rank 1)" in text
    assert "data" in text


def test_a_data_set_that_is_another_one_elsewhere(
    server: ForkServer, data: str, tmp_path: Path, folders: list[str]
) -> None:
    shutil.copytree(data, Path(folders[0]) / "data")
    make_tiny(Path(folders[1]) / "data", 40, 4, ("pose",), test=20)
    run, log = str(tmp_path / "run"), tmp_path / "log"
    text = refused(server, log, "elsewhere", run, "data", folders=folders)
    assert "rank 1 on node1 finds another data set at data" in text
    assert "same files" in text


def test_a_run_folder_that_is_not_shared(
    server: ForkServer, data: str, tmp_path: Path, folders: list[str]
) -> None:
    text = refused(server, tmp_path / "log", "elsewhere", "run", data, folders=folders)
    assert "on node1 (rank 1): run folder run is not the one that rank 0 holds" in text
    assert "--out" in text
