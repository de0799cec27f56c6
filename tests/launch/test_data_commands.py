"""`outmodal data ...` as it is called: what it prints, what it gives as JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outmodal.data.manifest import Dataset
from outmodal.launch import cli
from outmodal.launch.commands import data as data_command
from outmodal.launch.commands import data_check
from tests.data.test_check import rewrite
from tests.data.tiny import make_tiny


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    return make_tiny(tmp_path / "old", missing={"speech": {1, 2}})


def text_of(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(["data", *argv]) == code
    return capsys.readouterr().out


def json_of(capfd: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    capfd.readouterr()
    assert cli.main(["data", *argv, "--json"]) == code
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def spoil(dataset: Dataset) -> None:
    rewrite(dataset, "train-000001.tar", lambda s: s["train-00009"].update(cls=b"7"))


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    shown = text_of(capsys, "--help")
    assert all(f"  {name}" in shown for name in data_command.COMMANDS)
    assert "example:" in shown


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "chek"]) == 2
    assert "did you mean 'check'" in capsys.readouterr().err
    assert cli.main(["data", "build", "six-views"]) == 2
    assert "did you mean 'six-view'" in capsys.readouterr().err


def test_check_says_all_good(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    lines = text_of(capsys, "check", str(dataset.root)).splitlines()
    assert lines[0] == "36 samples in 5 shards: all good"
    assert lines[1].split() == ["shard", "split", "samples", "MB", "problems"]
    assert [line.split()[0] for line in lines[2:5]] == [f"train-{n:06d}.tar" for n in range(3)]


def test_check_names_problems(dataset: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(dataset)
    shown = text_of(capfd, "check", str(dataset.root), code=2)
    assert "1 problems (1 label)" in shown
    assert "train-000001.tar: sample 'train-00009': cls: label 7 is outside 0..2" in shown
    found = json_of(capfd, "check", str(dataset.root), code=2)
    assert (found["ok"], found["samples"], found["kinds"]) == (False, 36, {"label": 1})
    assert [shard["problems"] for shard in found["shards"]] == [0, 1, 0, 0, 0]
    assert found["problems"][0]["key"] == "train-00009"


def test_check_takes_several_data_sets(
    dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = make_tiny(tmp_path / "other", modalities=("pose",))
    spoil(other)
    found = json_of(capfd, "check", str(dataset.root), str(other.root), code=2)
    assert [entry["ok"] for entry in found.values()] == [True, False]


def test_long_reports_are_cut(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_bad(samples: dict[str, dict[str, bytes]]) -> None:
        for members in samples.values():
            members["cls"] = b"9"

    rewrite(dataset, "train-000001.tar", all_bad)
    monkeypatch.setattr(data_check, "_SHOWN", 3)
    monkeypatch.setattr(data_check, "_LINES", 2)
    shown = text_of(capsys, "check", str(dataset.root), code=2)
    assert shown.count("label 9") == 3
    assert "train-000001.tar: and 5 more (--json has all)" in shown
    assert "and 4 shards without problems" in shown


def test_repair_writes_a_data_set_beside(
    dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(dataset)
    shown = text_of(capfd, "check", "--repair", str(dataset.root))
    assert "35 samples, 1 shards written again, 1 samples left out by name" in shown
    assert "all good" in text_of(capfd, "check", str(tmp_path / "old-repaired"))
    found = json_of(capfd, "check", str(dataset.root), "--repair", "--out", str(tmp_path / "b"))
    assert found["dataset"] == str(tmp_path / "b")
    assert json.loads(Path(found["report"]).read_text())["left_out"][0]["key"] == "train-00009"


def test_what_does_not_go_together(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(dataset.root)
    for argv, reason in (
        (["check"], "dataset"),
        (["check", root, "--out", "x"], "give --repair too"),
        (["check", root, root, "--repair"], "one data set at a time"),
        (["stats", root, "--sample", "-1"], "--sample -1"),
        (["show", root, "--rows", "0"], "rows must be at least 1"),
    ):
        assert cli.main(["data", *argv]) == 2
        assert reason in capsys.readouterr().err


def test_stats_for_people_and_as_json(dataset: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    shown = text_of(capfd, "stats", str(dataset.root))
    assert "train: 24 samples in 3 shards" in shown
    assert "speech: 22 present, 8.33% missing" in shown
    assert "2.2 s in all" in shown
    assert "LEAKAGE train/test" in shown  # the few texts repeat
    found = json_of(capfd, "stats", str(dataset.root), "--sample", "4")
    assert found["splits"]["train"]["decoded"] == 4


def test_show_draws(dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    argv = ["show", str(dataset.root), "--out", str(out), "--rows", "2", "--classes", "red"]
    found = json_of(capfd, *argv, "--seed", "1")
    assert found == {"image": str(out)}
    assert out.read_bytes().startswith(b"\x89PNG")
