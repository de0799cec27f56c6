"""kill -9 at random moments, saves included: the run that is left equals an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.train.forked import ForkServer
from tests.train.plans import newest

KILLS = 20
ENGINE = {"epochs": 10, "checkpoint_every": 2, "eval_every": 2, "ema": 0.9, "keep": 2}


def plan(out: Path, data: str, strategy: str) -> dict[str, Any]:
    method = {"dropout": 0.2, "second": 4}
    engine = {**ENGINE, "strategy": strategy}
    return {"plan": {"out": str(out), "data": data, "engine": engine, "method": method}}


def alive(pid: int) -> bool:
    """False for a process that has ended, also while nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def progress(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def saving(out: Path) -> bool:
    return any((out / "checkpoints").glob(".tmp-*"))


def disturb(out: Path, pids: Sequence[int], draw: random.Random) -> None:
    """Kill all ranks with -9: half of the times during a save, else some steps after the start."""
    in_save = draw.random() < 0.5
    delay = draw.uniform(0.0, 0.004 if in_save else 0.03)
    begin = progress(out)
    while all(alive(pid) for pid in pids):
        if saving(out) if in_save else progress(out) != begin:
            time.sleep(delay)
            break
        time.sleep(0.0005)
    for pid in draw.sample(list(pids), len(pids)):
        os.kill(pid, signal.SIGKILL)
        time.sleep(draw.choice([0.0, 0.0, 0.02]))


def compare(torn: Path, calm: Path) -> None:
    """All that a run leaves is equal bit for bit, but for who wrote it and when."""
    for name in ("metrics.jsonl", "result.json"):
        assert (torn / name).read_bytes() == (calm / name).read_bytes(), name
    files = sorted(p.name for p in newest(calm).iterdir())
    assert sorted(p.name for p in newest(torn).iterdir()) == files
    for name in set(files) - {"state.json", "manifest.json"}:
        assert (newest(torn) / name).read_bytes() == (newest(calm) / name).read_bytes(), name
    assert not saving(torn)


@pytest.mark.timeout(900)  # as many starts as kills
@pytest.mark.parametrize(("ranks", "strategy"), [(1, "single"), (2, "ddp"), (2, "zero2")])
def test_killed_run_equals_an_undisturbed_one(
    server: ForkServer, data: str, tmp_path: Path, ranks: int, strategy: str
) -> None:
    """A run that ends before it was killed often enough is compared, and another one started."""
    calm, log = tmp_path / "calm", tmp_path / "log"
    shared = set(Path("/dev/shm").glob("*"))
    server.run(plan(calm, data, strategy), ranks, log)
    draw, kills, in_saves, runs = random.Random(ranks), 0, 0, 0
    torn = tmp_path / "torn0"
    while kills < KILLS or not in_saves:
        pids = server.start(plan(torn, data, strategy), ranks, log)
        disturb(torn, pids, draw)
        codes = server.wait(pids)
        assert set(codes) <= {0, 1, -signal.SIGKILL}, log.read_text("utf-8")[-4000:]
        kills += -signal.SIGKILL in codes
        in_saves += saving(torn)
        if (torn / "result.json").exists():
            compare(torn, calm)
            runs += 1
            torn = tmp_path / f"torn{runs}"
    server.run(plan(torn, data, strategy), ranks, log)
    compare(torn, calm)
    left = f"deepspeed_allreduce_buffer_{os.getuid()}_*"  # of the extension that we switch off
    assert set(Path("/dev/shm").glob(left)) <= shared
