"""What cannot be evaluated: one sentence each, with the remedy, and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from outmodal.launch.cli import main
from tests.data.tiny import make_tiny
from tests.launch.eval.conftest import Place

CASES = {
    "unknown split": (("align", "--split", "tset"), "did you mean 'test'"),
    "unknown training split": (
        ("align", "--task", "probe", "--train_split", "trian"),
        "did you mean 'train'",
    ),
    "more neighbours than samples": (
        ("align", "--task", "knn", "--knn.k", "1000"),
        "give numbers from 1 to 64",
    ),
    "unknown modality": (
        ("align", "--task", "corruptions", "--modality", "froce"),
        "has no encoder of 'froce'; did you mean 'force'",
    ),
    "no modality named": (("align", "--task", "corruptions"), "name the one to damage"),
    "unknown corruption": (
        ("align", "--task", "corruptions", "--modality", "force", "--corruptions", "nose"),
        "did you mean 'noise'",
    ),
    "unknown severity": (
        ("align", "--task", "corruptions", "--modality", "force", "--severities", "6"),
        "no severity 6",
    ),
    "no classifier": (
        ("align", "--task", "corruptions", "--modality", "force", "--judge", "classifier"),
        "has no classifier: train one on its representations with --task probe",
    ),
    "one modality": (("erm", "--task", "missing"), "nothing is left when it is missing"),
    "nothing to retrieve": (("erm", "--task", "retrieve"), "retrieval needs two modalities"),
    "no rate": (("align", "--task", "missing", "--rates", "1.5"), "1.5 is no share of samples"),
    "no process": (("align", "--nproc", "0"), "--nproc 0: give the number of processes"),
    "no draws": (("align", "--draws", "-1"), "--draws -1"),
    "no folder for the CSV": (("align", "--csv", "/nowhere/at/all.csv"), "no folder /nowhere/at"),
    "a folder for the CSV": (("align", "--csv", "/"), "is a folder: name a file"),
    "a target of a perceptor": (
        ("align", "--perceptor", "image=x"),
        "or --perceptor, not both",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mistakes(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (run, *words), message = CASES[name]
    assert main(["eval", str(getattr(place, run)), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_csv_file_that_cannot_be_written(
    place: Place,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Said before anything is computed. Root may write anywhere, so the refusal is made here."""

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "rows.csv"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        from outmodal.errors import UserError
        from outmodal.launch.eval.output import check_csv

        with pytest.raises(UserError, match="cannot be written: Permission denied: name another"):
            check_csv(str(file))
    assert not file.exists()


def test_runs_without_a_complete_checkpoint(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(place.erm, run)
    for folder in (run / "checkpoints").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    for task in ("classify", "probe"):
        assert main(["eval", str(run), "--task", task]) == 2
        assert "has no checkpoint yet: train it first" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "nothing")]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_data_that_lack_what_is_needed(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_tiny(tmp_path / "other", 24, 4, ("pose",)).root
    for what in (place.erm, place.classifier):
        assert main(["eval", str(what), "--data", str(other), "--task", "probe"]) == 2
        said = capsys.readouterr().err
        assert "encodes 'force', which data set 'tiny' does not have (it has pose)" in said
    assert main(["eval", str(place.classifier)]) == 2
    assert "--data is missing: only a run knows its data" in capsys.readouterr().err
    words = ["eval", str(place.classifier), str(place.erm), "--data", str(place.data)]
    assert main(words) == 2
    assert "is no export: several are exports only" in capsys.readouterr().err
    twice = ["eval", *[str(place.exports["force"])] * 2, "--data", str(place.data)]
    assert main([*twice, "--task", "knn"]) == 2
    assert "two exports of one modality" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "task", "message"),
    [
        ("", "classify", "split 'test' has no labelled sample with 'force'"),
        ("", "probe", "has no labels and no targets"),
        ("1", "probe", "are of one class, 'green', so there is nothing to tell apart"),
        ("1", "knn", "are of one class"),
    ],
)
def test_splits_without_labels_or_with_one_class(
    label: str,
    task: str,
    message: str,
    place: Place,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.launch.eval.relabel import relabelled

    data = relabelled(place.data, tmp_path / "data", label)
    assert main(["eval", str(place.erm), "--data", str(data), "--task", task]) == 2
    assert message in capsys.readouterr().err


def test_a_one_class_split_is_evaluated_where_nothing_learns_from_it(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.launch.eval.relabel import relabelled

    data = relabelled(place.data, tmp_path / "data", "1")
    assert main(["eval", str(place.erm), "--data", str(data)]) == 0
    assert "mean_per_class" in capsys.readouterr().out
