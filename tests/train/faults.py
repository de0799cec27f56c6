"""Faults that a rank of a real run is given: called in the fork server's children (see jobs)."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outmodal.data.samples import Reader
from outmodal.train import gather, startcheck
from outmodal.train.checkpoint import CheckpointStore
from outmodal.train.engine import Engine
from outmodal.train.run import train
from outmodal.train.watchdog import Watchdog
from tests.train.plans import tiny_plan


def run(job: Mapping[str, Any]) -> None:
    """Train job["plan"] with the fault job["fault"]."""
    faults = {
        "none": nothing,
        "hang": hang,
        "library": hang,
        "dies": hang,
        "slow_disk": slow_disk,
        "hung_disk": hung_disk,
        "reader_sleeps": reader,
        "reader_library": reader,
        "reader_dies": reader,
        "elsewhere": elsewhere,
        "other_code": other_code,
        "other_plan": nothing,
    }
    faults[job["fault"]](job)
    sections = dict(job["plan"])
    if job["fault"] == "other_plan" and os.environ["RANK"] == "1":
        sections |= job["other"]
    train(tiny_plan(Path(sections.pop("out")), **sections))


def nothing(job: Mapping[str, Any]) -> None:
    """No fault."""


def stuck_here() -> None:
    """Where the hanging rank hangs."""
    time.sleep(600)


def hang(job: Mapping[str, Any]) -> None:
    """Rank job["rank"] hangs in step job["step"], there or in a library that holds Python's lock,
    or dies."""
    original = Engine._step

    def stepping(self: Engine, *args: Any) -> Any:
        if self.at.step == job["step"] and gather.world().rank == job["rank"]:
            if job["fault"] == "library":
                ctypes.PyDLL(None).sleep(600)
            if job["fault"] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            stuck_here()
        return original(self, *args)

    Engine._step = stepping  # type: ignore[method-assign,assignment]


def slow_disk(job: Mapping[str, Any]) -> None:
    """Every checkpoint takes job["seconds"] more; the last rank gets two signals meanwhile, and
    more of them while the run ends."""
    original = CheckpointStore._write
    steps = Engine._step

    def writing(self: CheckpointStore, *args: Any) -> None:
        for _ in range(20):
            time.sleep(job["seconds"] / 20)
            if job.get("signals"):
                os.kill(os.getpid(), signal.SIGTERM)
        original(self, *args)

    def stepping(self: Engine, *args: Any) -> Any:
        if self.at.step == job.get("stop_before"):
            os.kill(os.getpid(), signal.SIGUSR1)
        return steps(self, *args)

    CheckpointStore._write = writing  # type: ignore[method-assign,assignment]
    Engine._step = stepping  # type: ignore[method-assign,assignment]


def stuck_disk(*_: Any) -> None:
    """Where a write never comes back."""
    time.sleep(600)


def hung_disk(job: Mapping[str, Any]) -> None:
    """The run hangs, and so does the disk that its report would go to."""
    hang(job)
    Watchdog._write_part = stuck_disk  # type: ignore[method-assign]
    Watchdog._answer_time = lambda _: 0.5  # type: ignore[method-assign]


def stuck_reader() -> None:
    """Where a reader hangs, while it lets other threads run."""
    ctypes.CDLL(None).sleep(600)


def reader(job: Mapping[str, Any]) -> None:
    """Whoever reads the sample job["key"] hangs, with Python's lock or without, or dies."""
    original = Reader._facts

    def facts(self: Reader, split: str, shard: int, index: int, members: Any) -> Any:
        if members.key == job["key"]:
            if job["fault"] == "reader_library":
                ctypes.PyDLL(None).sleep(600)
            if job["fault"] == "reader_dies":
                os.kill(os.getpid(), signal.SIGKILL)
            stuck_reader()
        return original(self, split, shard, index, members)

    Reader._facts = facts  # type: ignore[method-assign]


def elsewhere(job: Mapping[str, Any]) -> None:
    """Each rank is on a host of its own, and in a folder of its own."""
    rank = os.environ.get("RANK", "0")
    socket.gethostname = lambda: f"node{rank}"
    os.chdir(job["folders"][int(rank)])


def other_code(job: Mapping[str, Any]) -> None:
    """Rank 1 has an older source tree."""
    if os.environ["RANK"] == "1":
        startcheck.source_hash = lambda: "0123456789abcdef"  # type: ignore[assignment]
