"""Readers: what augmentation draws, what is cached of it, views, what is finished later, far
shards, memory that does not grow."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from outmodal.data import samples as samples_module
from outmodal.data.arrays import VectorInput
from outmodal.data.batch import Batch, StreamSpec, View
from outmodal.data.draws import Draw
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.memory import memory_bound
from outmodal.data.plan import Layout
from outmodal.data.samples import FAR_SWEEP, Column, Reader
from outmodal.data.skips import SkipLedger
from outmodal.data.store_local import LocalShard
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.transform import Transform, Value
from tests.data.tiny import make_tiny

CPU = torch.device("cpu")
SPEC = StreamSpec("all", "train", ("pose",), 8)


class Noisy(Transform):
    """Adds noise that is drawn per sample, and a batched offset per key, in 16 bits."""

    random = True

    def __init__(self, dataset: Dataset, random: bool = True) -> None:
        inner = VectorInput(dim=7).build(dataset, "pose", None)
        super().__init__(inner.config, (7,))
        self.inner, self.random = inner, random

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        return (7,), torch.float16

    def __call__(self, value: Value, key: str) -> Tensor:
        return self.compact(value, key).float()

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        x = self.inner(value, key)
        if draw is not None and self.random:
            x = x + torch.from_numpy(draw.generator(key).random(7, np.float32))
        return x.half()

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        shift = 0 if draw is None else draw.uniforms(keys, "shift", 1)
        return x.float() + 1 + shift


class Own(Noisy):
    """Decodes in its own way: its members are cached as they are."""

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        return self.compact(self.decode(spec, data), key, draw)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("samples")
    return make_tiny(root, 48, 4, ("pose",), test=8, missing={"pose": [5, 17]})


def config(**changes: Any) -> StreamConfig:
    return StreamConfig(**{"batch": 8, "streams": 4, "window": 6, **changes})


def epochs(
    dataset: Dataset, made: Transform, cfg: StreamConfig, spec: StreamSpec = SPEC, count: int = 2
) -> list[Batch]:
    with Loader(dataset, {"pose": made}, cfg) as loader:
        return [
            step["all"].to(CPU)
            for number in range(count)
            for step in loader.open_epoch([spec], seed=3, epoch=number, steps=6)
        ]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.key, b.key)
        for name in a.x:
            assert torch.equal(a.x[name], b.x[name])
            assert torch.equal(a.present[name], b.present[name])


@pytest.mark.parametrize("kind", [Noisy, Own])
@pytest.mark.parametrize(
    "changes",
    [{"threads": 1}, {"threads": 3}, {"workers": 2}, {"workers": 2, "threads": 2}, {"cache_mb": 0}],
)
def test_batches_are_the_same_for_any_threads_workers_and_cache(
    dataset: Dataset, kind: type[Noisy], changes: dict[str, int]
) -> None:
    made = kind(dataset)
    assert_same(epochs(dataset, made, config(**changes)), epochs(dataset, made, config()))


def by_index(batches: list[Batch], name: str = "pose") -> dict[int, Tensor]:
    return {
        index: row
        for batch in batches
        for index, row in zip(batch.index.tolist(), batch.x[name], strict=True)
    }


def test_every_epoch_draws_anew_and_absent_rows_stay_zero(dataset: Dataset) -> None:
    both = epochs(dataset, Noisy(dataset), config(threads=2))
    first, second = by_index(both[:6]), by_index(both[6:])
    assert first.keys() == second.keys() == set(range(48))
    for index in first:
        if index in (5, 17):
            assert not first[index].any()
            assert not second[index].any()
        else:
            assert not torch.equal(first[index], second[index])
            assert (first[index] - second[index]).abs().max() < 2.01


@pytest.mark.parametrize(("kind", "random", "decodes"), [(Noisy, True, 46), (Own, True, 92)])
def test_what_is_drawn_is_not_cached_but_what_it_is_drawn_from(
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Noisy],
    random: bool,
    decodes: int,
) -> None:
    """A second epoch reads nothing, and decodes only what transforms decode in their own way."""
    reads, decoded = [], []
    original, inner = samples_module.read_shard, Transform.decode

    def reading(place: Any, **options: Any) -> Iterator[Any]:
        for item in original(place, **options):
            reads.append(item[0])
            yield item

    def decoding(self: Transform, spec: Modality, data: bytes) -> Value:
        decoded.append(1)
        return inner(self, spec, data)

    monkeypatch.setattr(samples_module, "read_shard", reading)
    monkeypatch.setattr(Noisy, "decode", decoding)
    epochs(dataset, kind(dataset, random), config())
    assert len(reads) == 48
    assert len(decoded) == decodes


def test_views_are_drawn_independently_of_each_other(dataset: Dataset) -> None:
    views = (
        View("again", "pose"),
        View("hard", "pose", "strong"),
        View("plain", "pose", "none"),
    )
    spec = StreamSpec("all", "train", ("pose",), 8, views=views)
    (batch, *_) = epochs(dataset, Noisy(dataset), config(threads=2), spec)
    assert batch.x.keys() == batch.present.keys() == {"pose", "again", "hard", "plain"}
    there = batch.present["pose"]
    names = ["pose", "again", "hard", "plain"]
    for n, one in enumerate(names):
        for other in names[:n]:
            assert not (batch.x[one][there] == batch.x[other][there]).all(dim=1).any()
    with Loader(dataset, {"pose": Noisy(dataset)}, config()) as loader:
        whole = Batch.concat([b.to(CPU) for b in loader.open_pass(SPEC)])
    assert torch.equal(batch.x["plain"][there], whole.x["pose"][batch.index][there])


def test_a_view_must_have_a_name_of_its_own(dataset: Dataset) -> None:
    spec = StreamSpec("all", "train", ("pose",), 8, views=(View("pose", "pose"),))
    with Loader(dataset, {"pose": Noisy(dataset)}, config()) as loader:
        with pytest.raises(ValueError, match="same name"):
            loader.open_pass(spec)


def test_a_pass_draws_nothing(dataset: Dataset) -> None:
    with Loader(dataset, {"pose": Noisy(dataset)}, config(threads=2)) as loader:
        one, other = (Batch.concat([b.to(CPU) for b in loader.open_pass(SPEC)]) for _ in "ab")
    assert torch.equal(one.x["pose"], other.x["pose"])
    assert not one.x["pose"][[5, 17]].any()


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each coming read of a shard selects."""
    calls: list[int] = []
    original = samples_module.read_shard

    def reading(place: Any, *, select: Any) -> Iterator[Any]:
        calls.append(len(select))
        return original(place, select=select)

    monkeypatch.setattr(samples_module, "read_shard", reading)
    return calls


def test_far_shards_are_read_ahead_in_few_sweeps(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted_reads(monkeypatch)
    near = epochs(dataset, Noisy(dataset), config(cache_mb=0), count=1)
    singly, calls[:] = list(calls), []
    monkeypatch.setattr(LocalShard, "gap", property(lambda self: 1 << 20))
    far = epochs(dataset, Noisy(dataset), config(cache_mb=0, threads=2), count=1)
    assert_same(near, far)
    assert sum(calls) == sum(singly) == 48
    assert len(calls) < len(singly) / 2


def test_rows_that_are_asked_for_out_of_turn_are_read_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that decode come to a block's rows in any order."""
    calls = counted_reads(monkeypatch)
    monkeypatch.setattr(LocalShard, "gap", property(lambda self: 1 << 20))
    columns = (Column("pose", "pose"),)
    picks = Layout(tuple(i.samples for i in dataset.split("train").shards)).picks(np.arange(48))
    reader = Reader(dataset, {"pose": Noisy(dataset)}, 0, SkipLedger(0))
    block = reader.open("train", columns, picks)
    assert [block.sample(j).index for j in (1, 0)] == [1, 0]
    assert sum(calls) == FAR_SWEEP + 1  # all but the first from 1 on, and the first
    order = [3, 2, *range(4, 30), 34, 33, 31, 30, 32, 36, 35, *range(37, 48)]
    assert [block.sample(j).index for j in order] == order
    assert sum(calls) == 48


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def grown(dataset: Dataset, made: Transform, samples: int, cfg: StreamConfig) -> int:
    """Bytes by which this process grows while `samples` samples go by, behind a first round."""
    with Loader(dataset, {"pose": made}, cfg) as loader:

        def read(count: int) -> None:
            steps = loader.open_epoch([SPEC], seed=0, epoch=0, steps=count // 8)
            for _ in steps:
                pass

        read(800)
        before = resident()
        read(samples)
        return resident() - before


@pytest.mark.parametrize("samples", [1_600, pytest.param(100_000, marks=pytest.mark.long)])
def test_memory_stays_where_it_is(dataset: Dataset, samples: int) -> None:
    cfg = config(threads=2, cache_mb=0)
    more = grown(dataset, Noisy(dataset), samples, cfg)
    assert more < 4 << 20
    bound = memory_bound(dataset, {"pose": Noisy(dataset)}, cfg, [SPEC])
    assert 0 < bound < 1 << 20


def test_the_bound_grows_with_what_the_configuration_asks_for(dataset: Dataset) -> None:
    made: dict[str, Transform] = {"pose": Noisy(dataset)}

    def bound(world: int = 1, **changes: Any) -> int:
        return memory_bound(dataset, made, config(**changes), [SPEC], world)

    plain = bound(cache_mb=0)
    assert bound(cache_mb=1) - plain == 1 << 20
    assert bound(cache_mb=1, workers=2) - bound(cache_mb=0, workers=2) == 2 << 20
    assert bound(world=2, cache_mb=0) < plain
