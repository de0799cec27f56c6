"""`outmodal eval` of runs, exports and perceptors: the same encoder says the same."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.data.corruptions import CORRUPTIONS
from outmodal.launch.cli import main
from outmodal.train.results import COLUMNS
from tests.data.tiny import make_tiny
from tests.launch.eval.conftest import Place
from tests.launch.eval.relabel import relabelled
from tests.models import hub_models

QUICK = ("--probe.epochs", "3", "--probe.batch", "16", "--knn.k", "3", "7", "--draws", "200")


def evaluated(
    capfd: pytest.CaptureFixture[str], *words: object, code: int = 0
) -> Mapping[str, Any]:
    capfd.readouterr()
    assert main(["eval", *map(str, words), "--json"]) == code
    out: Mapping[str, Any] = json.loads(capfd.readouterr().out)
    return out


def values(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: held["value"] for name, held in found["metrics"].items()}


def test_a_run_is_evaluated_as_it_evaluates_itself(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    for run in (place.erm, place.align):
        last = [json.loads(row) for row in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        own = [row["values"] for row in last if row["split"] == "eval"][-1]
        found = evaluated(capfd, run)
        assert {name: values(found)[name] for name in own} == pytest.approx(own)
        for held in found["metrics"].values():
            assert held["low"] <= held["value"] <= held["high"]
            assert held["samples"] == 20
        assert found["checkpoint"].startswith("step-")


def test_classification_says_which_class_is_taken_for_which(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capfd, place.erm)
    assert found["classes"] == ["red", "green", "blue"]
    assert [sum(row) for row in found["confusion"]] == [7, 7, 6]
    assert sum(row[i] for i, row in enumerate(found["confusion"])) == round(
        20 * values(found)["top1"]
    )
    assert set(found["per_class"]) == {"red", "green", "blue"}
    assert main(["eval", str(place.erm)]) == 0
    printed = capfd.readouterr().out
    assert "true \\ said" in printed
    assert "95 % interval" in printed


@pytest.mark.parametrize("task", ["classify", "probe", "knn", "corruptions"])
def test_an_export_says_what_its_run_says(
    task: str, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """The export's batches are others, so the last bits of its vectors may be too."""
    words = ("--task", task, *QUICK, "--severities", "2", "5")
    run = evaluated(capfd, place.erm, *words)
    export = evaluated(capfd, place.classifier, "--data", place.data, *words)
    assert values(export) == pytest.approx(values(run), abs=0.051, nan_ok=True)
    assert export["checkpoint"] is None
    assert not (place.classifier / "eval").exists()


def test_exports_together_retrieve_as_their_run(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """The objective of this run scores by the cosine, as exports do."""
    words = ("--task", "retrieve", "--pool", "8")
    run = evaluated(capfd, place.align, *words)
    both = [place.exports[m] for m in ("force", "pose")]
    exports = evaluated(capfd, *both, "--data", place.data, *words)
    assert values(exports) == pytest.approx(values(run), abs=0.051)
    for task in ("combinations", "missing"):
        found = evaluated(capfd, *both, "--data", place.data, "--task", task, *QUICK)
        of_run = evaluated(capfd, place.align, "--task", task, *QUICK)
        assert values(found) == pytest.approx(values(of_run), abs=0.051)


def test_exports_as_perceptors_are_the_same_encoders(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    named = [str(place.exports[m]) for m in ("force", "pose")]
    words = ("--data", place.data, "--task", "retrieve", "--pool", "0")
    perceptors = evaluated(capfd, "--perceptor", *named, *words)
    exports = evaluated(capfd, *named, *words)
    assert values(perceptors) == values(exports)
    for task in ("probe", "knn", "combinations", "missing", "corruptions"):
        more = ("--modality", "pose", "--judge", "probe", "--severities", "4")
        asked = ("--perceptor", *named, "--data", place.data, "--task", task, *QUICK, *more)
        assert values(evaluated(capfd, *asked))


def test_class_names_judge_damaged_pictures_of_a_perceptor(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clip = hub_models.clip(tmp_path / "clip")
    data = make_tiny(tmp_path / "data", 6, 1, ("image", "text"), test=10).root
    words = ("--perceptor", f"image={clip}", "--data", str(data), "--draws", "20")
    classified = values(evaluated(capfd, *words))
    found = values(evaluated(capfd, *words, "--task", "corruptions", "--severities", "1", "5"))
    assert found["clean/top1"] == classified["top1"]
    assert {f"{name}/5/top1" for name in CORRUPTIONS["image"]} <= set(found)


def test_the_result_of_a_run_is_kept_for_the_report(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    found = evaluated(capfd, place.align, "--task", "missing", *QUICK, "--csv", file)
    kept = json.loads((place.align / "eval/missing-test.json").read_text("utf-8"))
    assert kept == found
    assert found["task"] == "missing"
    assert (found["target"], found["split"]) == (str(place.align), "test")
    with file.open(encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(found["rows"]) == len(found["metrics"])
    assert [float(row["value"]) for row in rows] == [row["value"] for row in found["rows"]]
    assert {row["rate"] for row in rows if row["modality"] == "pose"} == {
        "1.0", "0.1", "0.3", "0.5", "0.7", "0.9"
    }  # fmt: skip


def test_regression_targets_are_probed(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What is asked for are two numbers of the vector that one of the encoders reads."""
    data = relabelled(place.data, tmp_path / "data", "", regressed="pose")
    words = ("--data", data, *QUICK, "--probe.epochs", "30")
    probed = values(evaluated(capfd, place.align, *words, "--task", "probe"))
    with tarfile.open(data / "test-000000.tar") as tar:
        files = [tar.extractfile(m) for m in tar if m.name.endswith(".target.npy")]
        targets = np.stack([np.load(io.BytesIO(f.read())) for f in files if f is not None])
    assert 0 < probed["mse"] < targets.var(axis=0).mean()
    each = values(evaluated(capfd, place.align, *words, "--task", "combinations"))
    assert each["force+pose/mse"] == pytest.approx(probed["mse"])
    assert each["pose/mse"] < each["force/mse"]
    export = values(evaluated(capfd, place.exports["pose"], *words, "--task", "corruptions"))
    assert export["clean/mse"] == pytest.approx(each["pose/mse"], rel=0.05)
    assert export["mean/mse"] > export["clean/mse"]
    assert set(values(evaluated(capfd, place.align, *words, "--task", "knn"))) >= {"weighted_k3"}


def test_another_data_set(place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Representations may be probed for other classes; the classifier may not be asked."""
    other = make_tiny(tmp_path / "other", 24, 4, ("force", "pose"), classes=4, seed=3).root
    for task in ("probe", "knn"):
        found = evaluated(capfd, place.erm, "--data", other, "--task", task, *QUICK)
        assert (place.erm / f"eval/{task}-tiny-test.json").is_file()
        assert found["data"] == str(other)
    same = make_tiny(tmp_path / "same", 24, 4, ("force", "pose"), seed=3).root
    assert 0 <= values(evaluated(capfd, place.erm, "--data", same))["top1"] <= 1
    assert main(["eval", str(place.erm), "--data", str(other)]) == 2
    assert "evaluate on a data set with the same classes" in capfd.readouterr().err
    words = ["eval", str(place.classifier), "--data", str(other)]
    assert main(words) == 2
    assert "with the same classes" in capfd.readouterr().err
