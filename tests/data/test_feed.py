"""Epochs and passes with decode threads: order, resume, errors, ends."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outmodal.data import stream as stream_module
from outmodal.data.arrays import VectorInput
from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.manifest import Dataset
from outmodal.data.samples import Reader
from outmodal.data.stream import Loader, StreamConfig
from outmodal.errors import UserError
from tests.data.tiny import make_tiny

SPECS = [
    StreamSpec("all", "train", ("pose",), 12),
    StreamSpec("some", "train", ("pose",), 4, np.arange(3, 60, 5)),
]


EARLIER: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def earlier() -> None:
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("feed"), 64, 5, ("pose",), test=11)


def loader(dataset: Dataset, **changes: Any) -> Loader:
    made = VectorInput(dim=7).build(dataset, "pose", None)
    cfg = StreamConfig(**{"batch": 12, "streams": 4, "window": 7, "cache_mb": 0, **changes})
    return Loader(dataset, {"pose": made}, cfg)


def epoch(
    dataset: Dataset, start: int = 0, stop: int = 9, **changes: Any
) -> list[dict[str, Batch]]:
    with loader(dataset, **changes) as reading:
        return list(reading.open_epoch(SPECS, seed=2, epoch=1, start_step=start, steps=stop))


def assert_same(one: list[dict[str, Batch]], other: list[dict[str, Batch]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name].index, b[name].index)
            assert torch.equal(a[name].label, b[name].label)
            assert torch.equal(a[name].x["pose"], b[name].x["pose"])


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_keep_their_order_with_any_number_of_threads(
    dataset: Dataset, threads: int, start: int
) -> None:
    assert_same(epoch(dataset, start, threads=threads), epoch(dataset)[start:])


def test_expensive_samples_move_to_threads_in_the_middle_of_an_epoch(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = epoch(dataset)
    seen = {name: threading.Event() for name in ("MainThread", "decode-0", "decode-1")}
    original = Reader._facts

    def facts(self: Reader, *args: Any) -> Any:
        name = threading.current_thread().name
        seen[name].set()
        if name != "MainThread":  # a thread alone must not do all the work
            assert all(seen[other].wait(60) for other in ("decode-0", "decode-1"))
        time.sleep(0.001)
        return original(self, *args)

    monkeypatch.setattr(Reader, "_facts", facts)
    monkeypatch.setattr(stream_module, "choose_threads", lambda *_: 2)
    assert_same(epoch(dataset), want)
    assert all(thread.is_set() for thread in seen.values())


def test_cheap_samples_stay_in_the_training_thread(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "CHEAP", 1e9)
    with loader(dataset) as reading:
        for _ in reading.open_epoch(SPECS, seed=2, epoch=1, steps=9):
            assert readers() == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_pass_with_threads_holds_every_sample_once(dataset: Dataset, threads: int) -> None:
    with loader(dataset, threads=threads) as reading:
        whole = Batch.concat(list(reading.open_pass(StreamSpec("p", "test", ("pose",), 4))))
    assert whole.index.tolist() == [*range(11), -1]
    assert whole.key[-1] == 0
    assert len(whole.key.unique()) == 12


def readers() -> list[str]:
    """Names of the threads that read, but for those that were there before the test."""
    names = (thread.name for thread in threading.enumerate() if thread not in EARLIER)
    return [name for name in names if name.startswith(("decode", "batches"))]


def test_epochs_may_be_left_and_interleaved(dataset: Dataset) -> None:
    want = epoch(dataset)
    with loader(dataset, threads=2) as reading:
        left = reading.open_epoch(SPECS, seed=2, epoch=1, steps=9)
        first = next(left)
        passed = list(reading.open_pass(StreamSpec("p", "test", ("pose",), 4)))
        assert len(passed) == 3
        assert_same([first, *left], want)
        again = reading.open_epoch(SPECS, seed=2, epoch=1, steps=9)
        next(again)
        del again
        gc.collect()
        assert readers().count("batches") == 0
    assert readers() == []


class Stop(Exception):
    """Whatever else may come out of a step."""


def fail_in_the_first_step(dataset: Dataset) -> None:
    with loader(dataset, threads=2) as reading:
        for _ in reading.open_epoch(SPECS, seed=2, epoch=1, steps=9):
            raise Stop


def test_an_error_of_the_training_ends_the_threads(dataset: Dataset) -> None:
    with pytest.raises(Stop):
        fail_in_the_first_step(dataset)
    assert readers() == []


@pytest.mark.parametrize("changes", [{"threads": 1}, {"threads": 3}, {"workers": 2, "threads": 2}])
def test_errors_of_readers_come_to_the_training(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    def refuse(self: Reader, *_: Any) -> Any:
        raise UserError("a label is wrong")

    monkeypatch.setattr(Reader, "_facts", refuse)
    with loader(dataset, **changes) as reading:
        with pytest.raises(UserError, match="a label is wrong"):
            next(reading.open_epoch(SPECS, seed=2, epoch=1, steps=9))

    def fail(self: Reader, *_: Any) -> Any:
        raise ZeroDivisionError("of a decoder")

    monkeypatch.setattr(Reader, "_facts", fail)
    with loader(dataset, **changes) as reading:
        with pytest.raises((ZeroDivisionError, RuntimeError), match="of a decoder"):
            next(reading.open_epoch(SPECS, seed=2, epoch=1, steps=9))
    assert readers() == []


def test_a_block_is_not_held_in_memory(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step reads its own rows, not the windows of its streams."""
    read: list[int] = []
    original = Reader.decode

    def decode(self: Reader, *args: Any) -> Any:
        read.append(1)
        return original(self, *args)

    monkeypatch.setattr(Reader, "decode", decode)
    with loader(dataset, window=64) as reading:
        next(reading.open_epoch(SPECS[:1], seed=2, epoch=1, steps=5))
    assert len(read) == 12
