"""Faults that a rank of a real run is given: called in the fork server's children (see jobs).

Runs are patient until the fault is there, however slowly the machine starts them: whoever hangs
puts its process number into the file job["hangs"], and only then patience ends, here and on the
others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outmodal.data import workers
from outmodal.data.samples import Reader
from outmodal.train import gather, startcheck, watchdog
from outmodal.train import run as module
from outmodal.train.checkpoint import CheckpointStore
from outmodal.train.engine import Engine
from outmodal.train.watchdog import Watchdog
from tests.train.plans import tiny_plan


def run(job: Mapping[str, Any]) -> None:
    """Train job["plan"] with the fault job["fault"]."""
    faults = {
        "none": nothing,
        "hang": hang,
        "library": hang,
        "stops": hang,
        "dies": hang,
        "asked_apart": asked_apart,
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
    module.train(tiny_plan(Path(sections.pop("out")), **sections))


def nothing(job: Mapping[str, Any]) -> None:
    """No fault."""


PATIENCE = 4.8  # seconds, once the fault is there


def impatient(dog: Watchdog) -> None:
    """From now on a few seconds without progress are a fault."""
    dog._patience = PATIENCE
    dog._set_timer()


def silent(first: bool) -> None:
    """What a thread does that gets no turn any more."""


def told(path: Path) -> None:
    """Leave the number of this process in a file."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(str(os.getpid()), "utf-8")
    beside.replace(path)


def heard(path: Path) -> int:
    """The number that was left, as soon as it is."""
    while not path.exists():
        time.sleep(0.01)
    return int(path.read_text("utf-8"))


def state(pid: int) -> str:
    """What the kernel says of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return ""


def patient_answer(dog: Watchdog, other: int) -> None:
    """Wait for the other rank's answer as long as it can give one."""
    until = dog._until
    dog._answer_time = lambda: 60.0  # type: ignore[method-assign]

    def waiting(done: Callable[[], bool]) -> None:
        until(lambda: done() or state(other) in ("", "Z", "X", "T"))

    dog._until = waiting  # type: ignore[method-assign]


def stuck_here(dog: Watchdog, hangs: Path) -> None:
    """Where the hanging rank hangs."""
    told(hangs)
    impatient(dog)
    time.sleep(600)


def fails(fault: str, dog: Watchdog, hangs: Path) -> None:
    """What becomes of the rank that has the fault."""
    if fault == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stops":
        told(hangs)
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "library":
        dog._answer = silent  # type: ignore[method-assign]
        told(hangs)
        impatient(dog)
        ctypes.PyDLL(None).sleep(600)
    if fault == "hang":
        dog._answer_time = lambda: 60.0  # type: ignore[method-assign]
    stuck_here(dog, hangs)


def hang(job: Mapping[str, Any]) -> None:
    """Rank job["rank"] hangs in step job["step"], there or in a library that holds Python's lock,
    or is stopped, or dies."""
    original, hangs = Engine._step, Path(job["hangs"])
    watchdog._SLOWEST_LOOK = 0.24

    def stepping(self: Engine, *args: Any) -> Any:
        if self.at.step == job["step"]:
            if gather.world().rank == job["rank"]:
                fails(job["fault"], self.watchdog, hangs)
            elif job["fault"] != "dies":
                other = heard(hangs)
                while job["fault"] == "stops" and state(other) != "T":
                    time.sleep(0.01)
                patient_answer(self.watchdog, other)
                impatient(self.watchdog)
        return original(self, *args)

    Engine._step = stepping  # type: ignore[method-assign,assignment]


def asked_apart(job: Mapping[str, Any]) -> None:
    """Ranks are asked to stop before the first step: the last one when the first has left, for
    which it waits as long as it takes."""
    module._LATER = 60.0
    check_visible = module.check_visible

    def visible(*args: Any) -> None:
        told(Path(f"{job['hangs']}-{gather.world().rank}"))
        if gather.is_main():
            os.kill(os.getpid(), signal.SIGTERM)
        check_visible(*args)

    module.check_visible = visible


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
    Watchdog._answer_time = lambda _: 2.5  # type: ignore[method-assign]


def stuck_reader() -> None:
    """Where a reader hangs, while it lets other threads run."""
    ctypes.CDLL(None).sleep(600)


def reader(job: Mapping[str, Any]) -> None:
    """Whoever reads the sample job["key"] hangs, with Python's lock or without, or dies."""
    original, hangs, training = Reader._facts, Path(job["hangs"]), os.getpid()
    dogs = _impatient_soon(hangs)

    def facts(self: Reader, split: str, shard: int, index: int, members: Any) -> Any:
        if members.key == job["key"]:
            if job["fault"] == "reader_dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if job["fault"] == "reader_library" and os.getpid() == training:
                dogs[0]._answer = silent  # type: ignore[method-assign]
                impatient(dogs[0])
            else:
                told(hangs)
            if job["fault"] == "reader_library":
                ctypes.PyDLL(None).sleep(600)
            stuck_reader()
        return original(self, split, shard, index, members)

    Reader._facts = facts  # type: ignore[method-assign]


def _impatient_soon(hangs: Path) -> list[Watchdog]:
    """The run's watchdog, once there is one; it becomes impatient when a reader hangs."""
    entering, dogs = Watchdog.__enter__, list[Watchdog]()
    watchdog._SLOWEST_LOOK, workers._STACK_WAIT = 0.24, 60.0

    def watching(self: Watchdog) -> Watchdog:
        entering(self)
        self._answer_time = lambda: 60.0  # type: ignore[method-assign]
        dogs.append(self)
        threading.Thread(target=lambda: (heard(hangs), impatient(self)), daemon=True).start()
        return self

    Watchdog.__enter__ = watching  # type: ignore[method-assign]
    return dogs


def elsewhere(job: Mapping[str, Any]) -> None:
    """Each rank is on a host of its own, and in a folder of its own."""
    rank = os.environ.get("RANK", "0")
    socket.gethostname = lambda: f"node{rank}"
    os.chdir(job["folders"][int(rank)])


def other_code(job: Mapping[str, Any]) -> None:
    """Rank 1 has an older source tree."""
    if os.environ["RANK"] == "1":
        startcheck.source_hash = lambda: "0123456789abcdef"  # type: ignore[assignment]
