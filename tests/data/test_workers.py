"""Loader workers as processes: what travels, what happens when one dies, fails or hangs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from outmodal.data import workers
from outmodal.data.arrays import VectorInput
from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.board import report
from outmodal.data.manifest import Dataset
from outmodal.data.parcel import receive, send
from outmodal.data.samples import Reader
from outmodal.data.stream import Loader, StreamConfig, choose_threads
from outmodal.data.workers import Item, LostWorker
from outmodal.forking import STOPS
from tests.data.tiny import make_tiny

SPEC = StreamSpec("all", "train", ("pose",), 8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("workers"), 48, 4, ("pose",), test=8)


def loader(dataset: Dataset, **changes: Any) -> Loader:
    made = VectorInput(dim=7).build(dataset, "pose", None)
    cfg = StreamConfig(**{"batch": 8, "streams": 4, "window": 6, "workers": 2, **changes})
    return Loader(dataset, {"pose": made}, cfg)


def passed_on(item: Item) -> Item:
    ours, theirs = multiprocessing.Pipe()
    send(theirs, 7, item)
    run, got = receive(ours)
    assert run == 7
    assert isinstance(got, Item)
    return got


def test_batches_travel_whole() -> None:
    batch = Batch(
        index=torch.arange(3),
        label=torch.tensor([1, -1, 2]),
        x={
            "image": torch.randint(0, 255, (3, 2, 5, 7), dtype=torch.uint8),
            "pose": torch.randn(3, 4),
            "nothing": torch.zeros(3, 0),
        },
        present={name: torch.tensor([True, False, True]) for name in ("image", "pose", "nothing")},
        valid=torch.ones(3, dtype=torch.bool),
        target=torch.tensor([[0.5], [torch.nan], [2.0]]),
        key=torch.tensor([2**62, 0, 5]),
    )
    other = Batch(batch.index, batch.label, {}, {}, batch.valid)
    got = passed_on(Item({"a": batch, "b": other})).batches
    for one, back in ((batch, got["a"]), (other, got["b"])):
        for part in ("index", "label", "valid", "key"):
            assert torch.equal(getattr(one, part), getattr(back, part))
        assert one.x.keys() == back.x.keys()
        for name in one.x:
            assert torch.equal(one.x[name], back.x[name])
            assert one.x[name].dtype == back.x[name].dtype
            assert torch.equal(one.present[name], back.present[name])
    assert torch.equal(batch.target.nan_to_num(), got["a"].target.nan_to_num())  # type: ignore[union-attr]
    assert got["b"].target is None
    got["a"].x["pose"].add_(1)  # its memory is its own


def test_items_without_batches_travel() -> None:
    assert passed_on(Item(failure="no", last=True)) == Item(failure="no", last=True)


def test_many_batches_leave_no_open_files(dataset: Dataset) -> None:
    with loader(dataset) as reading:
        steps = reading.open_epoch([SPEC], seed=0, epoch=0, steps=60)
        next(steps)
        before = len(os.listdir("/proc/self/fd"))
        for _ in steps:
            pass
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_that_dies_is_named_at_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, worker: int
) -> None:
    """Also one whose turn it is not: the others go on reading for ever."""
    original = Reader._facts

    def facts(self: Reader, split: str, shard: int, index: int, members: Any) -> Any:
        name = multiprocessing.current_process().name
        if members.key == "train-00040" and name.endswith(str(worker)):
            os.kill(os.getpid(), number)
        return original(self, split, shard, index, members)

    monkeypatch.setattr(Reader, "_facts", facts)
    before = set(multiprocessing.active_children())
    with loader(dataset, cache_mb=0, threads=1) as reading:
        with pytest.raises(LostWorker) as caught:
            list(reading.open_epoch([SPEC], seed=0, epoch=0, steps=10_000))
    said = str(caught.value)
    assert f"loader worker {worker} (process " in said
    assert f"was killed by {number.name} while it read reader {worker}.0" in said
    assert "train-000003.tar, sample 'train-00040'" in said
    assert caught.value.exit_code == 1
    assert set(multiprocessing.active_children()) <= before


def test_a_worker_that_is_killed_while_it_waits(dataset: Dataset) -> None:
    with loader(dataset) as reading:
        list(reading.open_pass(SPEC))
        (victim, _) = processes(reading)
        victim.kill()
        victim.join()
        with pytest.raises(LostWorker, match="while it read nothing"):
            list(reading.open_epoch([SPEC], seed=0, epoch=0, steps=6))


def processes(reading: Loader) -> list[BaseProcess]:
    """The workers that there are by now."""
    return [worker.process for worker in reading._pool._workers] if reading._pool else []


def ask(steps: Iterator[Any]) -> None:
    with contextlib.suppress(Exception):  # its loader is closed meanwhile
        next(steps)


def test_the_report_shows_what_a_hanging_worker_reads_and_where(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hangs = tmp_path / "hangs"

    def hang(*_: Any) -> None:
        hangs.touch()
        time.sleep(600)

    monkeypatch.setattr(Reader, "_facts", hang)
    monkeypatch.setattr(workers, "_STACK_WAIT", 60.0)
    with loader(dataset, workers=1) as reading:
        steps = reading.open_epoch([SPEC], seed=0, epoch=0, steps=6)
        threading.Thread(target=ask, args=(steps,), daemon=True).start()
        wait_for(hangs)
        text, end = report(), time.monotonic() + 60
        while "in hang" not in text and time.monotonic() < end:  # a busy worker writes in pieces
            text = report()
        assert "train-00000" in text
        assert "sample 'train-000" in text
        assert "--- loader worker 0 (process " in text
        assert "in hang" in text


def test_a_report_while_the_loader_is_closed_touches_no_other_file(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The handles of the stacks' files are given anew as soon as they are closed."""
    asked, closed = threading.Event(), threading.Event()
    kill = os.kill

    def slow(pid: int, number: int) -> None:
        if number == signal.SIGUSR2:
            asked.set()
            assert closed.wait(60)
        kill(pid, number)

    monkeypatch.setattr(workers.os, "kill", slow)
    monkeypatch.setattr(workers, "_STACK_WAIT", 0.2)
    texts: list[str] = []
    with loader(dataset) as reading:
        list(reading.open_pass(SPEC))
        reporter = threading.Thread(target=lambda: texts.append(report()))
        reporter.start()
        assert asked.wait(60)
    others = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(20)]
    for other in others:
        os.write(other, b"kept")
    closed.set()
    reporter.join(60)
    assert [(tmp_path / str(n)).read_bytes() for n in range(20)] == [b"kept"] * 20
    assert "loader worker 0" in texts[0]
    assert texts[0].count("has ended") == 2
    for other in others:
        os.close(other)


@pytest.mark.parametrize("number", [signal.SIGUSR2, *STOPS])
def test_a_worker_that_is_signalled_before_it_is_set_up_lives(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    """Above all one that is asked for its stacks."""
    asked, begun, original = tmp_path / "asked", tmp_path / "begun", workers.leave_stops_to_parent

    def slow() -> None:
        begun.touch()
        wait_for(asked)
        original()

    monkeypatch.setattr(workers, "leave_stops_to_parent", slow)
    with loader(dataset, workers=1) as reading:
        steps = reading.open_epoch([SPEC], seed=0, epoch=0, steps=6)
        got: list[Any] = []
        taker = threading.Thread(target=lambda: got.extend(steps))
        taker.start()
        wait_for(begun)
        until(lambda: len(processes(reading)) == 1)  # it may run before it is in the list
        os.kill(processes(reading)[0].pid or 0, number)
        asked.touch()
        taker.join(120)
        assert len(got) == 6


def wait_for(path: Path) -> None:
    until(path.exists)


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not there():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.01)


def test_threads_are_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_threads(0, 0) == 8
    assert choose_threads(0, 2) == 4
    assert choose_threads(0, 64) == 1
    assert choose_threads(5, 64) == 5


def test_workers_hold_nothing_of_each_other(dataset: Dataset, tmp_path: Path) -> None:
    """A worker that ends closes its link at once: no sibling has a copy of it."""
    with loader(dataset) as reading:
        list(reading.open_pass(SPEC))
        pool = reading._pool
        assert pool is not None
        first = pool._workers[0]
        first.process.kill()
        first.process.join()
        assert first.link.poll(60.0)
        with pytest.raises((EOFError, OSError)):
            first.link.recv()
