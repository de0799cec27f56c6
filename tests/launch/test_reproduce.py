"""Tables: planned from the data, filled cell by cell, resumed, and written with the paper's."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.data.manifest import Dataset, open_dataset
from outmodal.errors import UserError
from outmodal.launch.cli import main
from outmodal.launch.reproduce import driver
from outmodal.launch.reproduce.cells import Cell, Plan, Request, plan_table
from outmodal.launch.reproduce.columns import Column, make_columns
from outmodal.launch.reproduce.learners import learner_for
from outmodal.launch.reproduce.render import blocks, markdown
from outmodal.launch.reproduce.table import TableSpec, chosen_rows, load_table
from tests.data.tiny import SPECS, make_tiny

ROOT = Path(__file__).parents[2]
NAMES = ("pose", "force", "text")
RECIPE = """
data: {batch: 8, streams: 2}
learners:
  - {name: mlp, modality: pose, widths: [8, 8], input: {name: vector, dim: 7}}
method: {name: align, head: {dim: 8}, prototypes: false}
optim: {name: adam, lr: 1.0e-2}
engine: {epochs: 1, device: cpu, threads: 1}
"""
QUICK = ("--probe.epochs", "2", "--probe.hidden", "8", "--steps", "4")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("tables") / "data"
    return make_tiny(root, samples=48, shards=4, modalities=NAMES)


@pytest.fixture(scope="module")
def recipe(dataset: Dataset) -> str:
    path = dataset.root.parent / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def command(dataset: Dataset, recipe: str, out: Path, *more: str, table: str = "1") -> list[str]:
    name = f"ova-ib-table{table}"
    data = ["--data", str(dataset.root), "--out", str(out), "--recipe", recipe]
    return ["reproduce", name, *data, *QUICK, *more]


PAIR = ("--objectives", "clip", "triangle", "--modalities", "pose", "force")
SMALL = (*PAIR, "--modalities", "force", "pose", "text", "--seeds", "1")


@pytest.fixture(scope="module")
def filled(dataset: Dataset, recipe: str) -> Path:
    """Two rows, columns of two and of three modalities, one seed: three cells."""
    out = dataset.root.parent / "filled"
    assert main(command(dataset, recipe, out, *SMALL)) == 0
    return out


def planned(dataset: Dataset, table: str = "ova-ib-table1", **asked: Any) -> list[Cell]:
    spec = load_table(table)
    request = Request(Path("out"), chosen_rows(spec, ()), **asked)
    return list(plan_table(spec, dataset, request).cells)


def test_all_rows_have_the_same_budget(dataset: Dataset) -> None:
    cells = planned(dataset, seeds=2)
    assert len({c.config.optim for c in cells}) == 1
    assert len({c.config.engine for c in cells}) == 1
    assert len({c.config.data for c in cells}) == 1
    assert len({str(c.config.learners) for c in cells}) == 1
    assert {c.config.seed for c in cells} == {0, 1}
    assert [c.number for c in cells] == list(range(len(cells)))
    assert len({c.folder for c in cells}) == len(cells)


def test_a_row_of_two_tables_is_one_run(dataset: Dataset) -> None:
    first, second = (
        next(c for c in planned(dataset, name) if c.row == "ova-ib")
        for name in ("ova-ib-table1", "ova-ib-table4")
    )
    assert first.folder == second.folder
    assert first.config == second.config


def test_triangle_is_planned_for_three_modalities_only(dataset: Dataset) -> None:
    cells = planned(dataset, columns=[("pose", "force"), NAMES], seeds=1)
    assert [c.modalities for c in cells if c.row == "triangle"] == [NAMES]
    assert len(cells) == 6 + 7


def test_columns_follow_the_recipe_and_go_from_three_on(tmp_path: Path, recipe: str) -> None:
    spec = load_table("ova-ib-table1")
    wide = make_tiny(tmp_path / "wide", samples=8, modalities=tuple(SPECS))
    columns = make_columns(spec, wide, recipe, ())
    assert [len(c.modalities) for c in columns] == [3, 4, 5]
    assert columns[-1].modalities == ("pose", "image", "speech", "text", "force")
    two = make_tiny(tmp_path / "two", samples=8, modalities=("text", "pose"))
    assert make_columns(spec, two, recipe, ()) == [Column(("pose", "text"))]
    alone = make_tiny(tmp_path / "alone", samples=8, modalities=("pose",))
    with pytest.raises(UserError, match="one modality"):
        make_columns(spec, alone, recipe, ())


def test_every_kind_but_video_has_a_learner(tmp_path: Path) -> None:
    made = make_tiny(tmp_path / "wide", samples=8, modalities=tuple(SPECS))
    cells = planned(made, columns=[tuple(SPECS)], seeds=1)
    assert [c.modality for c in cells[0].config.learners] == list(SPECS)
    video = SPECS["image"].model_copy(update={"kind": "video"})
    with pytest.raises(UserError, match="'film' is of kind video"):
        learner_for("film", video)
    with pytest.raises(UserError, match="'pose' of kind vector"):
        learner_for("pose", SPECS["pose"].model_copy(update={"shape": None}))


def test_the_table_is_written_in_three_forms(filled: Path) -> None:
    text = (filled / "ova-ib-table1.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| method | M=2: pose+force | M=3: force+pose+text | paper: VFP |")
    assert lines[2].startswith("| TRIANGLE | - | ")
    assert lines[2].endswith("| 95.91 | 93.27 | - | - |")
    assert lines[3].startswith("| CLIP | ")
    data = json.loads((filled / "ova-ib-table1.json").read_text(encoding="utf-8"))
    assert [c["row"] for c in data["cells"]] == ["clip", "triangle", "clip"]
    assert all(0 <= c["metrics"]["accuracy"] <= 1 for c in data["cells"])
    with (filled / "ova-ib-table1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["row"], r["m"], r["metric"]) for r in rows] == [
        ("clip", "2", "accuracy"),
        ("triangle", "3", "accuracy"),
        ("clip", "3", "accuracy"),
    ]
    assert float(rows[0]["value"]) == data["cells"][0]["metrics"]["accuracy"]


def test_a_finished_table_is_not_repeated(
    dataset: Dataset, recipe: str, filled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (filled / "cells").rglob("*") if p.is_file()}
    assert main(command(dataset, recipe, filled, *SMALL, "--plan", "--json")) == 0
    plan = json.loads(capfd.readouterr().out)
    assert [cell["state"] for cell in plan["cells"]] == ["done"] * 3
    assert main(command(dataset, recipe, filled, *SMALL)) == 0
    after = {p: p.stat().st_mtime_ns for p in (filled / "cells").rglob("*") if p.is_file()}
    assert after == before


def test_other_tables_evaluate_the_same_runs(
    dataset: Dataset, recipe: str, filled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = {p: p.stat().st_mtime_ns for p in (filled / "cells").rglob("result.json")}
    for table, part in (("2", "| force+pose+text |"), ("3", "mAP")):
        assert main(command(dataset, recipe, filled, *SMALL, "--json", table=table)) == 0
        data = json.loads(capfd.readouterr().out)
        assert len(data["cells"]) == 3
        assert part in (filled / f"ova-ib-table{table}.md").read_text(encoding="utf-8")
        assert data["problems"] == []
    assert {p: p.stat().st_mtime_ns for p in (filled / "cells").rglob("result.json")} == trained
    names = set(data["cells"][0]["metrics"])
    assert {"force_to_pose/map_instance", "mean/map_instance", "mean/map_pool64"} <= names


def test_one_cell_by_its_number(
    dataset: Dataset, recipe: str, filled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = json.loads((filled / "ova-ib-table1.json").read_text(encoding="utf-8"))
    out = filled.parent / "array"
    assert main(command(dataset, recipe, out, *SMALL, "--cell", "1", "--json")) == 0
    alone = json.loads(capfd.readouterr().out)
    assert alone["metrics"] == shared["cells"][1]["metrics"]
    assert [p.parent.parent.parent.name for p in out.rglob("result.json")] == ["triangle"]
    assert main(command(dataset, recipe, out, *SMALL, "--cell", "3")) == 2
    assert "cells 0 to 2" in capfd.readouterr().err


FOUR = ("--objectives", "clip", "--modalities", "pose", "force", "--seeds", "4")


def after_the_first_cell(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """This process gets a signal when it hears that a cell is done, and others are at work."""
    run_cells = driver.run_cells

    def running(cells: Any, measure: Any, jobs: int, report: driver.Report) -> Any:
        def reporting(outcome: Any, done: int, total: int) -> None:
            report(outcome, done, total)
            if outcome is not None:
                os.kill(os.getpid(), number)

        return run_cells(cells, measure, jobs, reporting)

    monkeypatch.setattr(driver, "run_cells", running)


def goes_on(arguments: list[str], out: Path) -> None:
    """What is done stays, what is not is done, and the table is written."""
    done = list(out.rglob("evaluation/probe-*.json"))
    kept = {p: p.stat().st_mtime_ns for p in done}
    assert 1 <= len(done) < 4
    assert not (out / "ova-ib-table1.md").exists()
    assert main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in done} == kept
    assert len(list(out.rglob("evaluation/probe-*.json"))) == 4
    assert " ± " in (out / "ova-ib-table1.md").read_text(encoding="utf-8")


def test_a_table_that_is_asked_to_stop_goes_on(
    dataset: Dataset, recipe: str, tmp_path: Path
) -> None:
    arguments = command(dataset, recipe, tmp_path, *FOUR, "--nproc_jobs", "2")
    with pytest.MonkeyPatch.context() as patch:
        after_the_first_cell(patch, signal.SIGTERM)
        assert main(arguments) == 75
    goes_on(arguments, tmp_path)


KILLED = """
import signal, sys
import pytest
from outmodal.launch.cli import main
from tests.launch.test_reproduce import after_the_first_cell
after_the_first_cell(pytest.MonkeyPatch(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.timeout(600)  # two processes that import everything, and a resumed table
def test_a_killed_table_goes_on(dataset: Dataset, recipe: str, tmp_path: Path) -> None:
    arguments = command(dataset, recipe, tmp_path, *FOUR, "--nproc_jobs", "2")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as running:
        said = running.communicate(timeout=500)[1]  # until those that worked for it are gone too
    assert running.returncode == -signal.SIGKILL, said.decode()
    goes_on(arguments, tmp_path)


def test_a_cell_that_fails_leaves_the_others(
    dataset: Dataset, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second column's run folder was started with another number of epochs."""
    columns = ("--modalities", "pose", "force", "--modalities", "pose", "text")
    wanted = ("--objectives", "clip", "--seeds", "1")
    begun = (*wanted, "--modalities", "pose", "text", "--epochs", "2", "--cell", "0")
    assert main(command(dataset, recipe, tmp_path, *begun)) == 0
    capfd.readouterr()
    assert main(command(dataset, recipe, tmp_path, *wanted, *columns, "--json")) == 2
    data = json.loads(capfd.readouterr().out)
    assert data["cells"][0]["metrics"] is not None
    assert data["cells"][1]["metrics"] is None
    assert "engine.epochs was 2, is now 1" in data["problems"][0]
    assert "| ? |" in (tmp_path / "ova-ib-table1.md").read_text(encoding="utf-8")


def test_frozen_encoders_of_a_run_are_evaluated(
    filled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(filled / "cells/clip/force+pose+text/seed-0")

    def evaluated(*arguments: str) -> Mapping[str, float]:
        assert main(["eval", run, *arguments, "--json"]) == 0
        metrics: Mapping[str, float] = json.loads(capfd.readouterr().out)["metrics"]
        return metrics

    quick = ("--probe.epochs", "1", "--probe.kind", "linear")
    assert set(evaluated("--task", "probe", *quick)) == {"accuracy"}
    every = evaluated("--task", "combinations", *quick)
    assert len(every) == 7
    ends = ("--subsets", "ends", "--missing", "mean_fill", "--probe.on", "embedding")
    assert len(evaluated("--task", "combinations", *quick, *ends)) == 4
    rest = evaluated("--task", "retrieve", "--pool", "4")
    assert {"force+pose_to_text/r1_instance", "mean/map_pool4"} <= set(rest)
    pairs = evaluated("--task", "retrieve", "--directions", "pairs", "--pool", "0")
    assert len({name.split("/")[0] for name in pairs}) == 6 + 1
    one = evaluated("--task", "retrieve", "--query", "pose", "--target", "text")
    assert {name.split("/")[0] for name in one} == {"pose_to_text", "mean"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--query", "pose"), "belong together"),
        (("--query", "pose", "--target", "pose"), "both in --query and --target"),
        (("--query", "poes", "--target", "text"), "did you mean 'pose'"),
    ],
)
def test_mistaken_directions(
    filled: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], part: str
) -> None:
    run = str(filled / "cells/clip/force+pose+text/seed-0")
    assert main(["eval", run, "--task", "retrieve", *arguments]) == 2
    assert part in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("--objectives", "clipp"), "no row 'clipp'; did you mean 'clip'"),
        (("--modalities", "pose"), "two or more different modalities"),
        (("--modalities", "pose", "pose"), "two or more different modalities"),
        (("--modalities", "pose", "forse"), "no modality 'forse'; did you mean 'force'"),
        (("--objectives", "triangle", "--modalities", "pose", "text"), "no row of the table"),
        (("--set", "method.name=cox"), "--set method.name"),
        (("--set", "optim.lr"), "KEY=VALUE"),
        (("--set", "optim.rl=1"), "optim.rl"),
        (("--seeds", "0"), "--seeds 0"),
        (("--nproc_jobs", "0"), "--nproc_jobs 0"),
        (("--split", "dev"), "no split 'dev'"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    dataset: Dataset,
    recipe: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: tuple[str, ...],
    part: str,
) -> None:
    assert main(command(dataset, recipe, tmp_path / "out", *change)) == 2
    assert part in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_tables_and_missing_data(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "ova-ib-tabel1", "--data", "x"]) == 2
    assert "did you mean 'ova-ib-table1'" in capfd.readouterr().err
    assert main(["reproduce"]) == 2
    assert "ova-ib-table4" in capfd.readouterr().err
    assert main(["reproduce", "ova-ib-table1"]) == 2
    assert "--data is missing" in capfd.readouterr().err


def test_data_without_labels_are_for_retrieval(
    dataset: Dataset,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def none(data: Dataset, split: str) -> np.ndarray:
        return np.full(data.split(split).samples, -1)

    monkeypatch.setattr("outmodal.data.labels.read_labels", none)
    assert main(command(dataset, recipe, tmp_path, "--plan")) == 2
    assert "neither labels nor targets" in capfd.readouterr().err
    assert main(command(dataset, recipe, tmp_path, "--plan", table="3")) == 0


def test_one_modality_is_no_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alone = make_tiny(tmp_path / "alone", samples=16, modalities=("pose",))
    assert main(["reproduce", "ova-ib-table1", "--data", str(alone.root)]) == 2
    assert "has one modality (pose)" in capfd.readouterr().err


def test_means_deviations_and_the_best_row() -> None:
    table = TableSpec.model_validate(
        {
            "title": "T",
            "source": "S",
            "task": "probe",
            "metrics": ["accuracy", "mse"],
            "rows": {
                "a": {"label": "A"},
                "b": {"label": "B"},
                "c": {"label": "C", "modalities": 2},
            },
            "reported": [{"title": "P", "columns": ["X"], "rows": {"a": ["9"]}}],
        }
    )
    config = planned(open_dataset("fashion-speech-sample"), seeds=1)[0].config
    places = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    column = Column(("x", "y", "z"))
    cells = tuple(
        Cell(i, key, column, seed, Path("f"), config, "probe")
        for i, (key, seed) in enumerate(places)
    )
    plan = Plan(table.rows, (column,), cells, {})

    def shown(metric: str) -> list[str]:
        found = {i: {metric: value} for i, value in enumerate((0.5, 0.7, 0.5, 0.5))}
        text = markdown(table, plan, blocks(table, plan, found))
        return [line for line in text.splitlines() if line.startswith("| ")][2:]

    assert shown("accuracy") == [
        "| A | **60.00** ± 14.14 | 9 |",
        "| B | 50.00 ± 0.00 | - |",
        "| C | - | - |",
    ]
    assert shown("mse")[:2] == ["| A | 0.6000 ± 0.1414 | 9 |", "| B | **0.5000** ± 0.0000 | - |"]
