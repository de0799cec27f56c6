"""Runs that fuse modalities: evaluated by their own classifier, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outmodal.data.manifest import Dataset
from outmodal.launch.cli import main
from tests.data.tiny import make_tiny
from tests.launch.eval.test_targets import evaluated, values
from tests.launch.report.runs import HEAD, METHODS, trained

DRAWS = ("--draws", "50")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("fused"), ["ume_mma"])["ume_mma"]


def own(run: Path) -> dict[str, float]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    found: dict[str, float] = [row["values"] for row in rows if row["split"] == "eval"][-1]
    return found


def test_a_run_says_what_it_said(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capfd, run, *DRAWS)
    said = own(run)
    assert {"top1", "miss_force/top1", "average/top1", "only_pose/top1"} <= set(said)
    assert {name: values(found)[name] for name in said} == pytest.approx(said)
    assert found["metrics"]["top1"]["low"] <= said["top1"] <= found["metrics"]["top1"]["high"]
    assert sum(map(sum, found["confusion"])) == 20


def test_its_classifier_judges_what_is_missing(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said, task = own(run), ("--task", "missing", *DRAWS)
    for judge in ((), ("--judge", "classifier")):
        found = values(evaluated(capfd, run, *task, *judge))
        assert found["complete/accuracy"] == pytest.approx(said["top1"])
        assert found["average/accuracy"] == pytest.approx(said["average/top1"])
        for m in ("force", "pose"):
            assert found[f"miss_{m}/accuracy"] == pytest.approx(said[f"miss_{m}/top1"])
    probed = evaluated(capfd, run, *task, "--judge", "probe", "--probe.epochs", "1")
    assert probed["settings"]["judge"] == "probe"
    assert values(probed) != found


def test_every_encoder_is_exported_with_its_classifier(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = str(run.parent / "data")
    for m in ("force", "pose"):
        words = ["export", str(run), "--to", str(tmp_path / m), "--modality", m]
        assert main(words) == 0
        capfd.readouterr()
        found = values(evaluated(capfd, tmp_path / m, "--data", data, *DRAWS))
        assert found["top1"] == pytest.approx(own(run)[f"only_{m}/top1"])


def test_judges_that_are_not_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--task", "missing", "--judge", "classifier"]
    align = trained(tmp_path, ["align"])["align"]
    assert main(["eval", str(align), *task]) == 2
    assert "has no classifier of all its modalities: leave --judge out" in capsys.readouterr().err
    other = make_tiny(tmp_path / "five", 20, 1, ("force", "pose"), test=20, classes=5)
    assert main(["eval", str(run), "--data", str(other.root), *task]) == 2
    said = capsys.readouterr().err
    assert "evaluate on a data set with the same classes, or with --judge probe" in said


def refused(data: Dataset, method: str, capsys: pytest.CaptureFixture[str]) -> str:
    root = data.root.with_name(f"run-{data.root.name}")
    root.mkdir()
    recipe = root / "recipe.yaml"
    pose = METHODS["ume_mma"].partition("method:")[0]
    recipe.write_text(HEAD.format(data=data.root) + pose + f"method: {method}\n", "utf-8")
    assert main(["train", str(recipe), "--out", str(root / "run")]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{name: naive, modalities: [force]}", "fuses 2 or more modalities, got force: add"),
        ("{name: naive, modalities: [force, poes]}", "did you mean 'pose'"),
        ("{name: ume_mma, unimodal_epochs: 3, complete_epochs: 2}", "engine.epochs 4: lower"),
        ("{name: ume_mma, p_drop_total: 1.5}", "less than or equal to 1"),
        ("{name: multi_task, answer: multilabel}", "has a `.target.npy` for method.answer"),
        ("{name: missing_detection, answer: multilabel}", "answer"),
        ("{name: naive, lr_scale: {froce: 0.1}}", "did you mean 'force'"),
    ],
)
def test_mistakes(
    tmp_path: Path, method: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_tiny(tmp_path / "data", 64, 4, ("force", "pose"), test=20)
    assert message in refused(data, method, capsys)


def test_data_that_cannot_be_fused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modalities, half = ("force", "pose"), {"force": range(32), "pose": range(32, 64)}
    one = make_tiny(tmp_path / "one", 64, 4, modalities, test=20, classes=1)
    said = refused(one, "{name: ume_mma}", capsys)
    assert "a classifier needs two at least" in said
    apart = make_tiny(tmp_path / "apart", 64, 4, modalities, test=20, missing=half)
    said = refused(apart, "{name: naive}", capsys)
    assert "none of the 64 training samples has 2 of force, pose" in said
