"""One run on the way through every sharding and several numbers of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.forked import ForkServer
from tests.train.plans import losses, newest

ENGINE = {"epochs": 3, "eval_every": 1, "ema": 0.9, "checkpoint_every": 5}
WAY = [(2, "ddp", 3), (1, "single", 6), (2, "zero2", 9), (2, "zero3", 12), (4, "zero1", 0)]
"""Ranks, strategy and the step after which it is left; 0 goes to the end."""


def job(out: Path, data: str, strategy: str) -> dict[str, Any]:
    plan = {"out": str(out), "data": data, "engine": {**ENGINE, "strategy": strategy}}
    return {"plan": plan, "persistent_below": 20}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", [WAY, WAY[::-1]], ids=["there", "back"])
def test_a_run_survives_every_change_of_ranks_and_sharding(
    server: ForkServer, data: str, tmp_path: Path, way: list[tuple[int, str, int]]
) -> None:
    calm, moved, log = tmp_path / "calm", tmp_path / "moved", tmp_path / "log"
    server.run(job(calm, data, "single"), 1, log)
    stops = sorted(stop for *_, stop in way if stop)
    for (ranks, strategy, _), stop in zip(way, [*stops, 0], strict=True):
        begun = job(moved, data, strategy)
        if stop:
            codes = server.wait(server.start({**begun, "stop_at": stop}, ranks, log))
            assert codes == [75] * ranks, log.read_text("utf-8")[-4000:]
            assert newest(moved).name == f"step-{stop:08d}"
        else:
            server.run(begun, ranks, log)
    assert len(losses(moved)) == 18
    assert losses(moved) == pytest.approx(losses(calm), abs=1e-5)
