"""Evaluations that several processes share: every sample once, and the result of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.report.runs import trained
from tests.train.forked import ForkServer

QUICK = ["--probe.epochs", "1", "--probe.batch", "32", "--knn.k", "3", "--draws", "100"]
TASKS = {
    "classify": [],
    "probe": QUICK,
    "knn": QUICK,
    "combinations": [*QUICK, "--subsets", "ends"],
    "retrieve": ["--pool", "7", "--draws", "100"],
    "missing": QUICK,
    "corruptions": [*QUICK, "--modality", "force", "--corruptions", "noise", "--severities", "5"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), ["align"])["align"]


def test_two_processes_give_the_numbers_of_one(
    run: Path, server: ForkServer, tmp_path: Path
) -> None:
    """To the last digit: in the record, which holds every number in full, and in the CSV file."""
    kept = {}
    for ranks in (1, 2):
        commands = [
            [str(run), "--task", task, *words, "--csv", str(tmp_path / f"{task}-{ranks}.csv")]
            for task, words in TASKS.items()
        ]
        job = {"call": "tests.train.evaluating:evaluate", "commands": commands}
        server.run(job, ranks, tmp_path / f"log-{ranks}")
        kept[ranks] = {task: (run / f"eval/{task}-test.json").read_bytes() for task in TASKS}
    for task in TASKS:
        assert kept[1][task] == kept[2][task], task
        one, two = (tmp_path / f"{task}-{ranks}.csv" for ranks in (1, 2))
        assert one.read_bytes() == two.read_bytes()


def test_a_mistake_ends_all_processes_and_is_said_once(
    run: Path, server: ForkServer, tmp_path: Path
) -> None:
    commands = [[str(run), "--task", "knn", "--knn.k", "999"], [str(run), "--split", "tset"]]
    job = {"call": "tests.train.evaluating:evaluate", "commands": commands, "code": 2}
    server.run(job, 2, tmp_path / "log")
    said = (tmp_path / "log").read_text("utf-8")
    assert said.count("give numbers from 1 to 64") == 1
    assert said.count("did you mean 'test'") == 1
