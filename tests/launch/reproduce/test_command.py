"""`outmodal reproduce` on tables with frozen encoders, missing modalities, and wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from outmodal.data.manifest import Dataset
from outmodal.launch.cli import main
from tests.launch.reproduce.small import make_data, make_recipe

QUICK = ("--steps", "2", "--prepare_epochs", "1", "--seeds", "1", "--probe.epochs", "1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("command") / "data")


@pytest.fixture(scope="module")
def recipe(dataset: Dataset) -> str:
    return make_recipe(dataset.root.parent)


def command(table: str, dataset: Dataset, recipe: str, out: Path, *more: str) -> list[str]:
    data = ["--data", str(dataset.root), "--recipe", recipe, "--out", str(out)]
    return ["reproduce", table, *data, *QUICK, *more]


def answer(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, object]:
    capfd.readouterr()
    assert main([*arguments, "--json"]) == 0
    said = capfd.readouterr().out  # a library that is imported first may have had a word
    found: dict[str, object] = json.loads(said.splitlines()[-1])
    return found


def test_cells_one_by_one_and_then_the_table(
    dataset: Dataset, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the tasks of a job array do: the first one prepares, and another table finds its row."""
    rows = ("--objectives", "erm", "cox")
    table = command("cox-table2", dataset, recipe, tmp_path, *rows)
    for number in ("0", "1"):
        found = answer(capfd, [*table, "--cell", number])
        metrics = found["metrics"]
        assert isinstance(metrics, dict)
        assert {"top1", "top5"} <= set(metrics)
    plan = answer(capfd, [*table, "--plan"])
    states = [cell["state"] for cell in plan["cells"]]  # type: ignore[attr-defined]
    assert states == ["done", "done", "to do", "to do", "to do", "to do"]
    parts = [part["state"] for part in plan["preparations"]]  # type: ignore[attr-defined]
    assert parts == ["done", "done", "to do", "to do", "to do", "to do"]
    shown = answer(capfd, [*table, "--show"])
    assert (shown["done"], shown["of"]) == (2, 6)
    text = (tmp_path / "cox-table2.md").read_text(encoding="utf-8")
    assert "| Semi: COX | " in text
    assert " | ? | " in text
    only = ("--objectives", "cox", "--show")
    other = answer(capfd, command("cox-table4", dataset, recipe, tmp_path, *only))
    assert (other["done"], other["of"]) == (1, 3)


def test_missing_modalities_and_rows_of_one(
    dataset: Dataset, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = ("--objectives", "unimodal", "naive", "--modalities", "pose", "force")
    table = command("ume-mma-table1", dataset, recipe, tmp_path, *rows)
    alone, both = (answer(capfd, [*table, "--cell", number])["metrics"] for number in ("0", "2"))
    assert isinstance(alone, dict)
    assert "top1" in alone
    assert isinstance(both, dict)
    names = {"miss_pose/accuracy", "miss_force/accuracy", "complete/accuracy", "average/accuracy"}
    assert names <= set(both)


@pytest.mark.parametrize(
    ("table", "change", "part"),
    [
        ("cox-table2", ("--modalities", "pose", "text"), "the table needs 3 modalities"),
        ("cox-table3", ("--modalities", "pose", "text", "forse"), "did you mean 'force'"),
        ("cox-table4", ("--perceptors", "tetx=encoder"), "did you mean 'text'"),
        ("infobridge-table1", ("--perceptors", "text=encoder"), "trains every encoder itself"),
        ("cox-table2", ("--objectives", "moco"), "no row 'moco'"),
        ("cox-table2", ("--prepare_epochs", "0"), "--prepare_epochs 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    dataset: Dataset,
    recipe: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    table: str,
    change: tuple[str, ...],
    part: str,
) -> None:
    arguments = command(table, dataset, recipe, tmp_path / "out")
    assert main([*arguments, *change]) == 2
    assert part in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_modalities_and_data_without_pairs(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two = make_data(tmp_path / "two", modalities=("pose", "text"), samples=8)
    assert main(command("cox-table2", two, recipe, tmp_path / "out", "--plan")) == 2
    assert "needs 3 modalities" in capfd.readouterr().err
    missing = {"pose": range(0, 12, 2), "force": range(1, 12, 2)}
    apart = make_data(tmp_path / "apart", samples=12, missing=missing)
    for table in ("cox-table2", "ume-mma-table1"):
        assert main(command(table, apart, recipe, tmp_path / "out", "--plan")) == 2
        assert "rows of this table learn from samples that pair them" in capfd.readouterr().err
    assert main(command("synergy-table2", apart, recipe, tmp_path / "out", "--plan")) == 0


def test_classes_need_labels(
    dataset: Dataset,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def none(data: Dataset, split: str) -> np.ndarray:
        return np.full(data.split(split).samples, -1)

    monkeypatch.setattr("outmodal.data.labels.read_labels", none)
    assert main(command("cox-table2", dataset, recipe, tmp_path, "--plan")) == 2
    assert "has no labels" in capfd.readouterr().err


def test_the_script_of_a_job_array(
    dataset: Dataset, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = command("cox-table3", dataset, recipe, tmp_path)
    capfd.readouterr()
    assert main(["submit", *arguments, "--array", "0-30%8", "--dry-run"]) == 0
    script = capfd.readouterr().out
    assert "#SBATCH --array=0-30%8" in script
    assert f"reproduce cox-table3 --data {dataset.root}" in script
    assert '--cell "$SLURM_ARRAY_TASK_ID"' in script


@pytest.mark.long
@pytest.mark.timeout(900)  # a process for each part and each cell
def test_a_whole_table_in_several_processes(
    dataset: Dataset, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every row of the largest table; then an encoder that is not there fails its own columns."""
    table = command("cox-table3", dataset, recipe, tmp_path, "--nproc_jobs", "2")
    found = answer(capfd, table)
    assert found["problems"] == []
    assert found["done"] == found["of"] == 31
    text = (tmp_path / "cox-table3.md").read_text(encoding="utf-8")
    assert " | ? |" not in text
    lost = command("cox-table2", dataset, recipe, tmp_path / "lost", "--nproc_jobs", "2")
    lost += ["--objectives", "erm", "--perceptors", "pose=nowhere/at-all", "--json"]
    assert main(lost) == 2
    broken = json.loads(capfd.readouterr().out)
    assert broken["done"] == 1
    assert len(broken["problems"]) == 2
    assert all("features of pose" in problem for problem in broken["problems"])


@pytest.mark.long
@pytest.mark.timeout(900)  # six processes that import everything
def test_tasks_of_an_array_that_start_at_once(
    dataset: Dataset, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three tasks want the same features: one makes them, and the others wait for it."""
    rows = ("--objectives", "random", "erm", "entmin")
    table = command("cox-table2", dataset, recipe, tmp_path, *rows)
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "outmodal", *table, "--cell", str(number)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    said = [task.communicate(timeout=600)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], said
    shown = answer(capfd, [*table, "--show"])
    assert (shown["done"], shown["of"]) == (3, 9)
    runs = [p for p in (tmp_path / "prepared").rglob("result.json")]
    assert len(runs) == 1
