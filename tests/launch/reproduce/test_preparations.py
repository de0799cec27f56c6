"""What cells need is made once, whoever asks for it, and goes on where it was stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from outmodal.data.manifest import open_dataset
from outmodal.errors import StoppedEarly, UserError
from outmodal.launch.reproduce import preparations
from outmodal.launch.reproduce.driver import stopping
from outmodal.launch.reproduce.preparations import Encoders, Features, ensure, ensure_all
from outmodal.train.folderlock import FolderLock
from tests.launch.reproduce.small import make_data, make_recipe, planned


@dataclass(frozen=True)
class Slow(Features):
    """A part that takes a while, and notes who made it."""

    def make(self) -> None:
        with (self.folder / "made").open("a", encoding="utf-8") as file:
            file.write("once\n")
        time.sleep(0.2)
        self.data.mkdir()
        (self.data / "dataset.json").touch()


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparations, "_PAUSE", 0.05)


def part(root: Path) -> Slow:
    return Slow(root / "part", "", (), ())


def test_one_prepares_and_the_others_wait(tmp_path: Path) -> None:
    made = part(tmp_path)
    asking = [threading.Thread(target=ensure, args=(made,)) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
        assert made.done()
    assert (made.folder / "made").read_text(encoding="utf-8") == "once\n"
    ensure_all((made,))
    assert (made.folder / "made").read_text(encoding="utf-8") == "once\n"


def test_who_waits_says_for_whom(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = part(tmp_path)
    made.folder.mkdir()
    lock = FolderLock(made.folder)
    waiting = threading.Thread(target=ensure, args=(made,))
    waiting.start()
    said = ""
    while "waiting for" not in said:
        assert waiting.is_alive()
        time.sleep(0.05)
        said += capfd.readouterr().err
    assert f"process {os.getpid()}" in said
    assert not made.done()
    lock.release()
    waiting.join(60)
    assert made.done()


def test_who_waits_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job does that is about to be preempted: it ends with the code that queues it again."""
    made = part(tmp_path)
    made.folder.mkdir()
    lock = FolderLock(made.folder)
    waits, pause = threading.Event(), time.sleep

    def pausing(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            waits.set()
        pause(seconds)

    def ask() -> None:
        assert waits.wait(60)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(preparations.time, "sleep", pausing)
    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(StoppedEarly, match="SIGUSR1"), stopping():
        ensure(made)
    asking.join()
    lock.release()
    assert not made.done()


def test_a_second_request_to_stop_interrupts_no_end_in_order() -> None:
    ended = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)
            ended.append(True)

    with pytest.raises(StoppedEarly, match="SIGTERM"), stopping():
        work()
    assert ended


def test_an_attempt_that_failed_leaves_it_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = part(tmp_path)

    def fails(self: Slow) -> None:
        raise UserError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(Slow, "make", fails)
        with pytest.raises(UserError, match="no space"):
            ensure(made)
    ensure(made)
    assert made.done()


def test_encoders_and_features_of_a_column(tmp_path: Path) -> None:
    """Trained, exported and embedded for real; a part that was lost is made again from the rest."""
    dataset = make_data(tmp_path / "data", samples=24)
    recipe = make_recipe(tmp_path)
    column = ("pose", "force", "text")
    plan = planned(
        dataset, "cox-table4", tmp_path / "out", recipe=recipe, columns=[column], prepare_epochs=1
    )
    cell = next(c for c in plan.cells if c.column.learned == "text")
    ensure_all(cell.needs)
    trained, embedded = cell.needs
    assert isinstance(trained, Encoders)
    assert isinstance(embedded, Features)
    specs = open_dataset(embedded.data).manifest.modalities
    assert [specs[m].kind for m in ("pose", "force", "text")] == ["vector", "vector", "text"]
    assert specs["pose"].shape == specs["force"].shape == (128,)
    checkpoints = sorted((trained.folder / "run").rglob("*"))
    (trained.folder / "done.json").unlink()
    ensure_all(cell.needs)
    assert trained.done()
    assert sorted((trained.folder / "run").rglob("*")) == checkpoints
