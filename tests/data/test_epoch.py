"""Elasticity and balance of real loaders: the same batches, whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from outmodal.data.arrays import VectorInput
from outmodal.data.batch import StreamSpec
from outmodal.data.epoch import drawn_counts, epoch_plan, epoch_use
from outmodal.data.manifest import Dataset
from outmodal.data.plan import PADDING, global_batch
from outmodal.data.stream import Loader, StreamConfig
from tests.data.mixed import open_mix, recut
from tests.data.tiny import make_tiny

SHAPES = {
    "one giant shard": [60],
    "uneven shards": [1, 50, 2, 7],
    "empty shards": [0, 30, 0, 0, 29, 0],
    "tiny shards": [1] * 25,
}
BATCH, STREAMS = 8, 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("whole") / "whole", 64, 4, ("pose",))


@pytest.fixture(scope="module", params=[*SHAPES, "mixture", "selection"])
def case(
    request: pytest.FixtureRequest, whole: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Dataset, StreamSpec]:
    root, select = tmp_path_factory.mktemp("cut"), None
    if request.param == "mixture":
        recut(whole, root / "odd", [0, 3, 1])
        dataset: Dataset = open_mix(
            {"path": str(whole.root), "proportion": 1},
            {"path": str(root / "odd"), "proportion": 2, "classes": "same"},
        )
    elif request.param == "selection":
        dataset, select = whole, np.array([1, 2, 3, 40, 63])
    else:
        dataset = recut(whole, root / "cut", SHAPES[request.param])
    return dataset, StreamSpec("all", "train", ("pose",), BATCH, select)


def batches(
    case: tuple[Dataset, StreamSpec], world: int, workers: int, threads: int, start: int, stop: int
) -> list[list[int]]:
    """The rows of each global batch, from the ranks in turn."""
    dataset, spec = case
    keys: Mapping[str, Any] = {"streams": STREAMS, "window": 16, "threads": threads}
    cfg = StreamConfig(batch=BATCH, workers=workers, **keys)
    inputs = {"pose": VectorInput(dim=7).build(dataset, "pose", None)}
    ranks = []
    for rank in range(world):
        with Loader(dataset, inputs, cfg, rank=rank, world=world) as loader:
            steps = loader.open_epoch([spec], seed=0, epoch=1, start_step=start, steps=stop)
            ranks.append([parts["all"].index for parts in steps])
    assert {len(rows) for rows in ranks} == {stop - start}  # nobody waits for another
    return [torch.cat(rows).tolist() for rows in zip(*ranks, strict=True)]


@pytest.mark.parametrize(
    ("world", "workers", "threads"), [(1, 0, 1), (4, 0, 2), (2, 2, 1), (8, 0, 3), (1, 4, 2)]
)
def test_ranks_workers_and_threads_read_the_plans_batches(
    case: tuple[Dataset, StreamSpec], world: int, workers: int, threads: int
) -> None:
    plan = epoch_plan(*case, 0, 1, STREAMS, 16)
    wanted = [global_batch(plan, step, BATCH).tolist() for step in range(9)]
    assert batches(case, world, workers, threads, 0, 9) == wanted
    assert batches(case, world, workers, threads, 7, 9) == wanted[7:]


def test_a_pass_holds_every_sample_once(case: tuple[Dataset, StreamSpec]) -> None:
    dataset, spec = case
    samples = dataset.split("train").samples
    inputs = {"pose": VectorInput(dim=7).build(dataset, "pose", None)}
    seen = []
    for rank in range(3):
        with Loader(dataset, inputs, StreamConfig(batch=BATCH), rank=rank, world=3) as loader:
            for batch in loader.open_pass(spec):
                seen += [i for i in batch.index.tolist() if i != PADDING]
    pool = list(range(samples)) if spec.select is None else spec.select.tolist()
    assert sorted(seen) == pool


def test_what_is_used_and_dropped_is_counted(case: tuple[Dataset, StreamSpec]) -> None:
    """The number said is the number of samples that an epoch's batches hold."""
    dataset, spec = case
    use = epoch_use(dataset, "train", BATCH)
    plan = epoch_plan(dataset, spec, 0, 0, STREAMS, 16)
    steps = use.drawn // BATCH
    rows = np.concatenate([global_batch(plan, step, BATCH) for step in range(steps)])
    assert len(rows) == use.drawn == use.samples - use.dropped
    if spec.select is None and not use.sources:
        assert len(np.unique(rows)) == use.used
    counts = drawn_counts(dataset, [spec], steps, seed=0, epoch=0, streams=STREAMS, window=16)
    assert sum(counts.values()) == (len(rows) if use.sources else 0)
