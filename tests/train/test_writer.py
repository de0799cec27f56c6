"""Checkpoints beside the training: nothing waits, nothing is lost, and mistakes come to light."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outmodal.errors import UserError
from outmodal.train.checkpoint import CheckpointStore, Snapshot, verify
from outmodal.train.engine import EngineConfig
from outmodal.train.run import restore_method, train
from outmodal.train.runfolder import RunFolder
from outmodal.train.saving import Saver
from outmodal.train.watchdog import Watchdog
from outmodal.train.writer import CheckpointWriter
from tests.train.faults import state
from tests.train.forked import ForkServer
from tests.train.plans import lines, newest, tiny_plan
from tests.train.test_checkpoint import DAMAGES, damage_byte


class Gated(CheckpointStore):
    """A store on a disk that stands still until `gate` opens; `broken` makes it fail."""

    def __init__(self, root: Path, broken: bool = False) -> None:
        super().__init__(root)
        self.prepare()
        self.gate, self.broken = threading.Event(), broken

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        assert self.gate.wait(60)
        if self.broken:
            raise OSError(28, "No space left on device")
        super()._write(folder, snapshot)


def snapshot(step: int) -> Snapshot:
    return Snapshot({"weights": {"a": torch.full((4,), float(step))}}, {"step": step})


def test_the_step_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    store = Gated(tmp_path / "checkpoints")
    writer = CheckpointWriter(store, True, tmp_path / "log.jsonl")
    writer.begin(3, snapshot(3), 0.25, 0.5)
    assert writer.wait(0.01) == 0
    assert store.newest() is None
    assert writer.written() == []
    store.gate.set()
    assert writer.wait() is None
    assert store.newest() == store.root / "step-00000003"
    (cost,) = writer.written()
    assert (cost.step, cost.background, cost.stall_s) == (3, True, 0.75)
    assert cost.bytes == sum(p.stat().st_size for p in (store.root / "step-00000003").iterdir())
    assert writer.written() == []
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert set(row) == {
        *("step", "background", "bytes", "wait_s", "snapshot_s", "write_s", "stall_s")
    }


def test_a_synchronous_write_is_part_of_the_stall(tmp_path: Path) -> None:
    store = Gated(tmp_path / "checkpoints")
    store.gate.set()
    writer = CheckpointWriter(store, False, tmp_path / "log.jsonl")
    writer.begin(3, snapshot(3), 0.25, 0.5)
    (cost,) = writer.written()
    assert cost.stall_s == 0.75 + cost.write_s
    assert not cost.background


@pytest.mark.parametrize("background", [True, False])
def test_a_write_that_fails_is_raised(tmp_path: Path, background: bool) -> None:
    store = Gated(tmp_path / "checkpoints", broken=True)
    store.gate.set()
    writer = CheckpointWriter(store, background, tmp_path / "log.jsonl")

    def write() -> None:
        writer.begin(3, snapshot(3), 0.0, 0.0)
        writer.wait()

    with pytest.raises(UserError, match=r"step-00000003.*No space.*same command again"):
        write()
    writer.close()


@pytest.mark.parametrize("calls", [1, 2])
def test_a_folder_that_was_taken_over_is_left_alone(tmp_path: Path, calls: int) -> None:
    """Before the write, or while it went on."""
    left = calls

    def refuse() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise UserError("taken over")

    store = Gated(tmp_path / "checkpoints")
    store.gate.set()
    writer = CheckpointWriter(store, True, tmp_path / "log.jsonl", refuse)
    writer.begin(3, snapshot(3), 0.0, 0.0)
    with pytest.raises(UserError, match="taken over"):
        writer.wait()
    assert store.steps() == []
    assert not list(store.root.iterdir())


def test_closing_waits_and_is_silent(tmp_path: Path) -> None:
    store = Gated(tmp_path / "checkpoints")
    writer = CheckpointWriter(store, True, tmp_path / "log.jsonl")
    writer.begin(3, snapshot(3), 0.0, 0.0)
    threading.Timer(0.05, store.gate.set).start()
    writer.close()
    assert store.newest() is not None


def test_milestones_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, keep_every=4)
    store.prepare()
    for step in range(1, 12):
        store.save(step, snapshot(step))
    assert [step for step, _ in store.steps()] == [11, 10, 8, 4]


def test_both_ways_leave_the_same_run(data: str, tmp_path: Path) -> None:
    """Bit for bit, but for the clock; what checkpoints cost is in no file that is compared."""
    engine = {"epochs": 2, "checkpoint_every": 3, "ema": 0.9, "keep": 9}
    plans = [
        tiny_plan(tmp_path / str(i), data, {**engine, "async_checkpoint": way})
        for i, way in enumerate((True, False))
    ]
    for plan in plans:
        train(plan)
    one, other = (plan.out for plan in plans)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for step in (3, 6, 9, 12):
        for file in sorted((one / f"checkpoints/step-{step:08d}").glob("*.safetensors")):
            twin = other / file.relative_to(one)
            assert file.read_bytes() == twin.read_bytes()
    rows = [json.loads(r) for r in (one / "checkpoints.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert all(row["background"] and row["bytes"] > 0 for row in rows)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(one / "tensorboard"))
    board.Reload()
    for name in ("stall_s", "snapshot_s", "write_s", "MiB"):
        assert [e.step for e in board.Scalars(f"checkpoint/{name}")] == [3, 6, 9, 12]


@pytest.mark.parametrize("background", [True, False])
def test_frozen_weights_are_never_written(data: str, tmp_path: Path, background: bool) -> None:
    engine = {"ema": 0.5, "async_checkpoint": background}
    plan = tiny_plan(tmp_path / "run", data, engine, {"frozen": True})
    train(plan)
    for part in ("weights", "optimizer", "ema", "method"):
        names = load_file(newest(plan.out) / f"{part}.safetensors")
        assert not [name for name in names if "fixed" in name], part
    one, _, _ = restore_method(plan)
    other, _, _ = restore_method(plan)
    for name, p in one.named_parameters():
        assert torch.equal(p, dict(other.named_parameters())[name])
    assert any(name.startswith("fixed") for name, _ in one.named_parameters())


def test_ranks_look_at_a_write_more_often_than_they_lose_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float | None] = []
    monkeypatch.setattr(CheckpointWriter, "wait", lambda _, seconds: seen.append(seconds))
    for timeout, hang in ((10.0, 9.0), (0.1, 0.2), (10.0, 0.2), (0.4, 0.0)):
        config = EngineConfig(timeout=timeout, hang_minutes=hang)
        watchdog = Watchdog(tmp_path, 0.0)
        nothing: Any = None
        Saver(nothing, nothing, None, config, RunFolder(tmp_path), watchdog).wait()
    assert seen == pytest.approx([20.0, 1.5, 3.0, 6.0])


def slow(out: Path, data: str, **more: Any) -> dict[str, Any]:
    engine = {"epochs": 2, "checkpoint_every": 4, "strategy": "ddp"}
    plan = {"out": str(out), "data": data, "engine": engine}
    return {"call": "tests.train.faults:run", "fault": "slow_disk", "plan": plan, **more}


def test_signals_during_a_background_write_do_not_spoil_it(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    """One SIGUSR1 in a step, then twenty SIGTERM while two checkpoints are being written."""
    calm, torn, log = tmp_path / "calm", tmp_path / "torn", tmp_path / "log"
    server.run(slow(calm, data, seconds=0.0), 2, log)
    stopped = slow(torn, data, seconds=0.4, signals=True, stop_before=5)
    assert server.wait(server.start(stopped, 2, log)) == [75, 75]
    assert verify(newest(torn)) is None
    assert not list((torn / "checkpoints").glob(".tmp-*"))
    server.run(slow(torn, data, seconds=0.0), 2, log)
    assert lines(torn) == lines(calm)
    assert (newest(torn) / "weights.safetensors").read_bytes() == (
        newest(calm) / "weights.safetensors"
    ).read_bytes()


def test_a_signal_before_the_first_step_is_75(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outmodal.errors import StoppedEarly
    from outmodal.train import run as module

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    plan = tiny_plan(tmp_path / "run", data)
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_transforms", interrupted)
        with pytest.raises(StoppedEarly, match=r"before the first step.*same command"):
            train(plan)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert train(plan).steps == 12


def test_ranks_that_are_asked_to_stop_one_after_the_other_all_leave_with_75(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    """Rank 1 hears of it when rank 0 is gone and a collective has failed."""
    hangs = tmp_path / "hangs"
    stopped = slow(tmp_path / "run", data, hangs=str(hangs)) | {"fault": "asked_apart"}
    pids = server.start(stopped, 2, tmp_path / "log")
    while not all(Path(f"{hangs}-{rank}").exists() for rank in (0, 1)) or state(pids[0]) != "Z":
        time.sleep(0.01)
    time.sleep(0.5)  # it may come before or after the collective has failed
    os.kill(pids[1], signal.SIGTERM)
    assert server.wait(pids) == [75, 75], (tmp_path / "log").read_text("utf-8")


@pytest.mark.parametrize("kind", ["sha256", "missing", "empty", "latest"])
def test_evaluation_and_export_fall_back_loudly_too(
    data: str, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tiny_plan(tmp_path / "run", data, {"checkpoint_every": 4, "keep": 3})
    train(plan)
    last = newest(plan.out)
    if kind == "latest":  # what is complete is found by itself
        (plan.out / "checkpoints" / "latest").write_text("")
    else:
        DAMAGES[kind][0](last)
    with caplog.at_level(logging.WARNING):
        restored, _, _ = restore_method(plan, ema=False)
    used = 12 if kind == "latest" else 8
    weights = load_file(plan.out / f"checkpoints/step-{used:08d}/weights.safetensors")
    assert torch.equal(dict(restored.named_parameters())["head.weight"], weights["head.weight"])
    assert ("the one before" in caplog.text) == (kind != "latest")
    assert last.exists()  # looking at a run changes nothing in it


def test_ranks_agree_on_the_checkpoint_before(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    calm, hurt, log = tmp_path / "calm", tmp_path / "hurt", tmp_path / "log"
    for out in (calm, hurt):
        server.run(slow(out, data, seconds=0.0), 2, log)
    (hurt / "result.json").unlink()
    damage_byte(newest(hurt))
    (hurt / "checkpoints" / "latest").write_text("")
    log = tmp_path / "again"
    server.run(slow(hurt, data, seconds=0.0), 2, log)
    assert lines(hurt) == lines(calm)
    assert log.read_text().count("step-00000008, the one before") == 1


def test_a_rank_that_cannot_read_the_checkpoint_ends_all(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outmodal.train import checkpoint

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    plan = tiny_plan(tmp_path / "run", data)
    train(plan)
    (plan.out / "result.json").unlink()
    monkeypatch.setattr(checkpoint, "read", refuse)
    with pytest.raises(UserError, match=r"step-00000012.*Input/output error.*same run folder"):
        train(replace(plan))
