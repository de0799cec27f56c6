"""Reading run folders: whole, torn, damaged, held, and their TensorBoard files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from outmodal.errors import UserError
from outmodal.launch.report.board import read_board
from outmodal.launch.report.reading import read_run, read_runs
from outmodal.train.folderlock import FolderLock
from tests.launch.report.runs import boarded, by_hand, line


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    text = (
        line(1, "train", loss=2.0) + line(2, "train", loss=float("nan")) + line(2, "eval", top1=0.5)
    )
    run = read_run(by_hand(tmp_path / "a", text, "seed: 7\n"), "a")
    assert (run.state, run.step, run.torn, run.config["seed"]) == ("finished", 2, False, 7)
    assert [m.values for m in run.lines if m.split == "train"] == [{"loss": 2.0}, {"loss": None}]
    assert run.last("eval") == {"top1": 0.5}
    assert run.last("epoch") == {}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    text = line(1, "train", loss=2.0) + line(2, "train", loss=1.0)
    run = read_run(by_hand(tmp_path / "a", text[:-cut], done=False), "a")
    assert run.torn
    assert run.step == 1


@pytest.mark.parametrize("bad", ["nonsense\n", "[]\n", '{"step": 1}\n', line(1, "a")[:-9] + "\n"])
def test_a_damaged_line_elsewhere_is_named(tmp_path: Path, bad: str) -> None:
    folder = by_hand(tmp_path / "a", line(1, "train", loss=2.0) + bad + line(3, "train", loss=1.0))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is no line of metrics"):
        read_run(folder, "a")


def test_who_writes_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "a", done=False)
    assert read_run(folder, "a").state == "not finished"
    lock = FolderLock(folder)
    assert read_run(folder, "a").state == "being written"
    lock.check()
    lock.release()
    assert read_run(folder, "a").state == "not finished"
    FolderLock(folder).release()


def test_no_run_and_the_same_run_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        read_runs([tmp_path])
    folder = by_hand(tmp_path / "a")
    with pytest.raises(UserError, match="named twice"):
        read_runs([folder, folder])
    bad = by_hand(tmp_path / "b", config="[1, 2")
    with pytest.raises(UserError, match="is no configuration"):
        read_runs([bad])


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    same = [by_hand(tmp_path / "x" / "cox"), by_hand(tmp_path / "y" / "cox")]
    assert [run.name for run in read_runs(same)] == ["x/cox", "y/cox"]
    other = by_hand(tmp_path / "x" / "erm")
    assert [run.name for run in read_runs([same[0], other])] == ["cox", "erm"]


def test_the_board_without_what_metrics_has(tmp_path: Path) -> None:
    boarded(tmp_path, "train/loss", [1.0])
    boarded(tmp_path, "speed/steps_per_s", [3.0, math.inf, 5.0])
    assert read_board(tmp_path / "tensorboard") == {
        "speed/steps_per_s": [(1, 3.0), (2, None), (3, 5.0)]
    }
    assert read_board(tmp_path / "nothing") == {}


def test_a_resumed_run_replaces_what_it_writes_again(tmp_path: Path) -> None:
    first = boarded(tmp_path, "speed/a", [1.0, 2.0, 3.0])
    second = boarded(tmp_path, "speed/a", [20.0], begin=2, purge=2)
    first.rename(first.with_name("events.out.tfevents.1.a"))
    second.rename(second.with_name("events.out.tfevents.2.a"))
    assert read_board(tmp_path / "tensorboard") == {"speed/a": [(1, 1.0), (2, 20.0)]}


def test_a_board_that_is_being_written_is_read_to_its_end(tmp_path: Path) -> None:
    file = boarded(tmp_path, "speed/a", [1.0, 2.0, 3.0])
    file.write_bytes(file.read_bytes()[:-5])
    assert read_board(tmp_path / "tensorboard") == {"speed/a": [(1, 1.0), (2, 2.0)]}
    file.write_bytes(b"this is no record" * 9)
    assert read_board(tmp_path / "tensorboard") == {}
