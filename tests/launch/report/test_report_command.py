"""`outmodal report` as a command, and the numbers on its page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from outmodal.launch.cli import main
from outmodal.launch.report.build import write_report
from outmodal.launch.report.measure import measure
from outmodal.launch.running import open_run
from outmodal.train.evaluation import evaluate_run
from outmodal.train.folderlock import FolderLock
from tests.launch.report.runs import by_hand, line


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_it_writes_one_file_into_the_run_and_changes_nothing(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["erm"], run)
    before = snapshot(run)
    assert main(["report", str(run)]) == 0
    assert "wrote" in capsys.readouterr().out
    after = snapshot(run)
    text = after.pop(str(run / "report.html")).decode()
    assert after == before
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)
    assert "default-src 'none'" in text
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text("utf-8") == text  # the same run gives the same page


def test_json(runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "both.html"
    arguments = [str(runs["cox"]), str(runs["erm"]), "--out", str(out), "--evaluate", "False"]
    assert main(["report", *arguments, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["report"] == str(out)
    assert answer["bytes"] == out.stat().st_size
    assert answer["runs"] == {"cox": "finished", "erm": "finished"}
    assert "asked not to" in answer["not_evaluated"]["cox"]
    text = out.read_text("utf-8")
    assert "method.name" in text
    assert "Terms of the loss" in text


@pytest.mark.parametrize("name", ["cox", "erm", "align"])
def test_measured_values_are_those_of_eval(runs: dict[str, Path], name: str) -> None:
    plan = open_run(runs[name])[1]
    found = {s.name: s for s in measure(plan, 0).scores}
    expected = evaluate_run(plan).metrics
    both = found.keys() & expected.keys()
    assert len(both) >= 2
    for key in both:
        assert found[key].value == pytest.approx(expected[key], abs=1e-9), key
        low, high = found[key].low, found[key].high
        assert low is not None
        assert high is not None
        assert 0 <= low <= found[key].value <= high <= 1


def test_what_is_measured_of_a_classifier(runs: dict[str, Path]) -> None:
    found = measure(open_run(runs["cox"])[1], 0)
    assert found.confusion is not None
    assert found.confusion.sum() == found.samples == found.of == 20
    top1 = next(s.value for s in found.scores if s.name == "top1")
    assert found.confusion.trace() / 20 == pytest.approx(top1)
    assert [s.count for s in found.per_class] == found.confusion.sum(axis=1).tolist()
    assert set(found.features) == {"force", "pose"}
    assert [(g.first, g.second) for g in found.gaps] == [("force", "pose")]
    assert found.gaps[0].mmd > 0


def test_fewer_samples_can_be_asked_for(runs: dict[str, Path]) -> None:
    plan = open_run(runs["align"])[1]
    some, same, whole = measure(plan, 7), measure(plan, 7), measure(plan, 0)
    assert (some.samples, some.of) == (7, 20)
    assert torch.equal(some.features["pose"], same.features["pose"])
    rows = (whole.features["pose"][None] - some.features["pose"][:, None]).abs().amax(-1) < 1e-6
    assert bool(rows.any(dim=1).all())
    picked = rows.int().argmax(dim=1)
    assert torch.equal(whole.label[picked], some.label)


def test_a_run_without_checkpoint_or_data_still_has_its_curves(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    bare = by_hand(tmp_path / "bare", line(1, "train", loss=2.0))
    report = write_report([bare], None, 0, True)
    assert "bare" in report.missing
    assert "Training loss" in report.path.read_text("utf-8")
    gone = tmp_path / "gone"
    shutil.copytree(runs["erm"], gone)
    shutil.rmtree(gone / "checkpoints")
    assert "no complete checkpoint" in write_report([gone], None, 0, True).missing["gone"]
    config = gone / "config.yaml"
    config.write_text(re.sub(r"path: .*", "path: /nowhere/data", config.read_text("utf-8")))
    shutil.copytree(runs["erm"] / "checkpoints", gone / "checkpoints")
    assert "/nowhere/data" in write_report([gone], None, 0, True).missing["gone"]
    empty = by_hand(tmp_path / "empty", done=False)
    assert "There is no evaluation yet" in write_report([empty], None, 0, True).path.read_text()


def test_a_checkpoint_that_is_removed_meanwhile(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError(2, "no such file", "step-00000001/weights.safetensors")

    monkeypatch.setattr("outmodal.launch.report.build.measure", gone)
    report = write_report([runs["erm"]], tmp_path / "r.html", 0, True)
    assert "weights.safetensors is gone" in report.missing["erm"]
    assert "Training loss" in report.path.read_text("utf-8")


def test_what_the_machine_gave_is_shown(runs: dict[str, Path], tmp_path: Path) -> None:
    text = write_report([runs["erm"]], tmp_path / "r.html", 0, False).path.read_text("utf-8")
    assert "Processor cores in use" in text
    row = re.search(r"Corrupt samples skipped</th><td>(.*?)</td>", text)
    assert row is not None
    assert row[1] == "0"


def test_a_run_that_is_held_is_reported(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["erm"], run)
    (run / "result.json").unlink()
    lock = FolderLock(run)
    assert main(["report", str(run)]) == 0
    lock.check()
    lock.release()
    assert "run is being written" in capsys.readouterr().out
    assert "still being written" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a run"),
        (["{empty}"], "is not a run"),
        (["{run}", "{run}"], "named twice"),
        (["{run}", "--out", "{run}/config.yaml"], r"name an \.html file"),
        (["{run}", "--out", "{folder}"], "is a folder"),
        (["{run}", "--out", "{run}/seed.txt/x.html"], "cannot write"),
        (["{run}", "--samples", "-1"], "--samples -1"),
        (["{run}", "--uot", "x.html"], "out"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    run = by_hand(tmp_path / "run")
    (run / "seed.txt").write_text("")
    (tmp_path / "x.html").mkdir()
    places = {"run": run, "empty": tmp_path / "none", "folder": tmp_path / "x.html"}
    assert main(["report", *[a.format(**places) for a in arguments]]) == 2
    error = capsys.readouterr().err
    assert re.search(says, error)
    assert "Traceback" not in error
    assert (run / "config.yaml").read_text("utf-8") == "seed: 0\n"
