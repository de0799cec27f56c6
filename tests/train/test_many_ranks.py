"""64 ranks on paper: who reads what in each step, who holds which rows, what goes on the wire.

Nothing is started. Everything that a rank knows of the others follows from pure functions of
(rank, world), and these are put side by side here for all ranks at once.
"""

from __future__ import annotations

import numpy as np
import pytest

from outmodal.data.plan import PADDING, PassPlan, Plan, check_split, choose_streams, share
from outmodal.launch.plan.wire import traffic

BATCH, WINDOW = 512, 32
SIZES = tuple(97 + 7 * (i % 5) for i in range(130))  # unequal shards
SAMPLES = sum(SIZES)


def rows(plan: Plan, rank: int, world: int, workers: int, step: int) -> list[int]:
    """Indices of a rank's rows of a step, as its workers read and join them."""
    each = BATCH // plan.streams
    return [
        int(index)
        for worker in range(workers)
        for stream in share(plan.streams, rank * workers + worker, world * workers)
        for index in plan.indices(stream, step * each, (step + 1) * each)
    ]


@pytest.mark.parametrize(("world", "workers"), [(64, 1), (64, 2), (32, 4), (8, 1)])
def test_each_sample_comes_once_and_all_ranks_take_the_same_steps(world: int, workers: int) -> None:
    streams = choose_streams(len(SIZES), sum(SIZES), BATCH, world, workers)
    check_split("train", SIZES, streams, BATCH, world * workers)
    plan = Plan(3, 5, "all", streams, WINDOW, SIZES, None)
    steps = plan.length // (BATCH // streams)
    owned = [share(streams, part, world * workers) for part in range(world * workers)]
    assert [stream for part in owned for stream in part] == list(range(streams))
    seen: list[int] = []
    for step in range(steps):
        parts = [rows(plan, rank, world, workers, step) for rank in range(world)]
        assert {len(part) for part in parts} == {BATCH // world}
        joined = [index for part in parts for index in part]
        assert joined == plan.batch(step, BATCH).tolist()
        seen += joined
    assert len(seen) == len(set(seen)) == steps * BATCH
    dropped = SAMPLES - len(seen)
    assert 0 <= dropped < BATCH + streams


def test_ranks_and_workers_do_not_change_the_batches() -> None:
    """A run that begins on 64 ranks goes on on 16, 4 or 1 with the same global batches."""
    plan = Plan(3, 5, "all", 64, WINDOW, SIZES, None)
    for step in (0, 11, 24):
        whole = plan.batch(step, BATCH).tolist()
        for world, workers in ((64, 1), (16, 4), (16, 1), (4, 2), (1, 1)):
            parts = [rows(plan, rank, world, workers, step) for rank in range(world)]
            assert [index for part in parts for index in part] == whole


@pytest.mark.parametrize("samples", [1, 63, 1000, 4096, 4097])
def test_an_evaluation_reads_each_sample_once_in_equal_steps(samples: int) -> None:
    plan = PassPlan(samples, 256, 64)
    places = np.array(
        [[plan.places(rank, step) for step in range(plan.steps)] for rank in range(64)]
    )
    assert places.shape == (64, plan.steps, 4)
    assert places[places != PADDING].tolist() == list(range(samples))


@pytest.mark.parametrize("dim", [256, 1024])
def test_what_a_step_sends(dim: int) -> None:
    """Gathered rows of 64 ranks: counted row by row, against the closed form of `outmodal plan`."""
    world, parameters = 64, 1_000_000
    own = BATCH // world * dim * 4  # bytes of fp32 rows
    sent = 0
    for hop in range(world - 1):  # ring: a rank passes on one block a hop, its own one first
        block = (0 - hop) % world
        assert block != 1  # the next rank's own rows never come round to it
        sent += own
    ddp = traffic(parameters, "ddp", world, False, own)
    assert ddp.objective == 2 * sent  # and as much for the gradients on the way back
    assert sent == (BATCH - BATCH // world) * dim * 4
    shares = {s: traffic(parameters, s, world, False, own) for s in ("zero1", "zero2", "zero3")}
    share = 4 * parameters * (world - 1) / world
    assert ddp.reduce == pytest.approx(2 * share)
    assert shares["zero1"].reduce + shares["zero1"].weights == pytest.approx(3 * share)
    assert shares["zero2"].total == pytest.approx(ddp.total)
    assert shares["zero3"].total == pytest.approx(ddp.total + share)
