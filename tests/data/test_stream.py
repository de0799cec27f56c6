"""The loader on real tars: order, resume, reads, caches, workers, damage."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from outmodal.data import samples as samples_module
from outmodal.data.arrays import SeriesInput, VectorInput
from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.shards import ShardWriter
from outmodal.data.stream import Loader, StreamConfig, resolve_streams, steps_per_epoch
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from tests.data.processes import running
from tests.data.tiny import make_tiny

Step = dict[str, Batch]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """90 train samples in 9 shards, 13 test samples in 2; two modalities, one missing in places."""
    root = tmp_path_factory.mktemp("tiny")
    return make_tiny(root, 90, 9, ("force", "pose"), test=13, missing={"force": [3, 4, 5, 40, 77]})


def inputs(dataset: Dataset) -> dict[str, Transform]:
    force = SeriesInput(length=16, channels=3, mean=(0.0,), std=(1.0,))
    return {
        "force": force.build(dataset, "force", None),
        "pose": VectorInput(dim=7).build(dataset, "pose", None),
    }


def config(**changes: Any) -> StreamConfig:
    return StreamConfig(**{"batch": 8, "streams": 4, "window": 5, **changes})


def spec(name: str = "all", split: str = "train", **changes: Any) -> StreamSpec:
    fields = {"modalities": ("force", "pose"), "batch": 8, **changes}
    return StreamSpec(name, split, **fields)


def loader(dataset: Dataset, cfg: StreamConfig, rank: int = 0, world: int = 1) -> Loader:
    return Loader(dataset, inputs(dataset), cfg, rank=rank, world=world)


def epoch(
    dataset: Dataset,
    cfg: StreamConfig,
    specs: Sequence[StreamSpec] = (),
    *,
    start: int = 0,
    steps: int = 11,
    number: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[Step]:
    with loader(dataset, cfg, rank, world) as reading:
        return list(
            reading.open_epoch(
                specs or [spec()], seed=1, epoch=number, start_step=start, steps=steps
            )
        )


def assert_same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.label, other.label)
    for name in one.x:
        assert torch.equal(one.x[name], other.x[name])
        assert torch.equal(one.present[name], other.present[name])


def assert_same_steps(one: Sequence[Step], other: Sequence[Step]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every (shard, position) that is read from a tar."""
    seen: list[tuple[str, int]] = []
    original = samples_module.read_shard

    def counting(path: Path, **options: Any) -> Iterator[tuple[int, str, dict[str, bytes]]]:
        for position, key, members in original(path, **options):
            seen.append((path.name, position))
            yield position, key, members

    monkeypatch.setattr(samples_module, "read_shard", counting)
    return seen


class TestEpoch:
    def test_rows_are_the_samples_that_their_index_names(self, dataset: Dataset) -> None:
        whole = {int(b.index[0]): b for b in passed(dataset, spec("p", batch=1))}
        for step in epoch(dataset, config()):
            batch = step["all"]
            assert len(batch) == 8
            assert bool(batch.valid.all())
            for i, index in enumerate(batch.index.tolist()):
                assert int(batch.label[i]) == index % 3
                assert torch.equal(batch.x["pose"][i], whole[index].x["pose"][0])
                assert bool(batch.present["force"][i]) == (index not in {3, 4, 5, 40, 77})
                if not batch.present["force"][i]:
                    assert not batch.x["force"][i].any()

    def test_a_pass_holds_each_sample_at_most_once(self, dataset: Dataset) -> None:
        index = torch.cat([s["all"].index for s in epoch(dataset, config())])
        assert len(index.unique()) == 88

    def test_epochs_and_specs_differ_in_order(self, dataset: Dataset) -> None:
        both = [spec("a"), spec("b")]
        first, second = (epoch(dataset, config(), both, number=n) for n in (0, 1))
        orders = [torch.cat([s[n].index for s in e]) for e in (first, second) for n in "ab"]
        for i, order in enumerate(orders):
            for other in orders[:i]:
                assert (order == other).float().mean() < 0.2

    def test_selections_of_any_size_and_empty_ones(self, dataset: Dataset) -> None:
        few, some = np.array([7, 50]), np.arange(0, 90, 4)
        specs = [
            spec("few", select=few),
            spec("none", select=np.array([], np.int64)),
            spec("some", select=some, batch=4, modalities=("pose",)),
        ]
        for step in epoch(dataset, config(), specs, steps=20):
            assert step.keys() == {"few", "some"}
            assert set(step["few"].index.tolist()) <= set(few)
            assert set(step["some"].index.tolist()) <= set(some)
            assert step["some"].x.keys() == {"pose"}
            assert len(step["some"]) == 4

    @pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 0), (1, 2), (2, 2)])
    def test_ranks_and_workers_hold_the_same_global_batches(
        self, dataset: Dataset, world: int, workers: int
    ) -> None:
        specs = [spec("a"), spec("b", select=np.arange(0, 90, 7), batch=12)]
        whole = epoch(dataset, config(), specs, start=3, steps=15)
        cfg = config(workers=workers)
        parts = [
            epoch(dataset, cfg, specs, start=3, steps=15, rank=r, world=world) for r in range(world)
        ]
        joined = [
            {name: Batch.concat([part[t][name] for part in parts]) for name in ("a", "b")}
            for t in range(12)
        ]
        assert_same_steps(joined, whole)


class TestResume:
    @pytest.mark.parametrize("start", [1, 5, 10, 26])
    def test_it_is_the_rest_of_the_epoch(self, dataset: Dataset, start: int) -> None:
        specs = [spec("a"), spec("b", select=np.arange(5, 60), batch=4)]
        whole = epoch(dataset, config(), specs, steps=27)
        assert_same_steps(epoch(dataset, config(), specs, start=start, steps=27), whole[start:])

    def test_it_reads_what_is_still_to_come_and_nothing_else(
        self, dataset: Dataset, reads: list[tuple[str, int]]
    ) -> None:
        whole = epoch(dataset, config(cache_mb=0), steps=11)
        assert len(reads) == len(set(reads)) == 88
        reads.clear()
        epoch(dataset, config(cache_mb=0), start=7, steps=11)
        rest = torch.cat([s["all"].index for s in whole[7:]]).tolist()
        assert sorted(reads) == sorted((f"train-{i // 10:06d}.tar", i % 10) for i in rest)

    def test_it_opens_only_the_shards_of_the_streams_that_it_owns(
        self, dataset: Dataset, reads: list[tuple[str, int]]
    ) -> None:
        epoch(dataset, config(window=64), rank=1, world=4)
        assert len({shard for shard, _ in reads}) <= 4  # 22 neighbours, of 9 shards of 10
        assert len(reads) == 22

    def test_an_epoch_without_remaining_steps_reads_nothing(
        self, dataset: Dataset, reads: list[tuple[str, int]]
    ) -> None:
        assert epoch(dataset, config(), start=11, steps=11) == []
        assert reads == []


def passed(
    dataset: Dataset, what: StreamSpec, cfg: StreamConfig | None = None, world: int = 1
) -> list[Batch]:
    """The batches of a pass, of one rank after the other."""
    batches = []
    for rank in range(world):
        with loader(dataset, cfg or config(), rank, world) as reading:
            batches += list(reading.open_pass(what))
    return batches


class TestPass:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("world", [1, 3])
    def test_every_sample_comes_once_in_order(
        self, dataset: Dataset, world: int, workers: int
    ) -> None:
        batches = passed(dataset, spec("p", "test"), config(workers=workers), world)
        whole = Batch.concat(batches)
        assert whole.index[whole.valid].tolist() == list(range(13))
        assert {len(b) for b in batches} == {8 if world == 1 else 3}
        assert len(batches) % world == 0
        padding = ~whole.valid
        assert (whole.index[padding] == -1).all()
        assert (whole.label[padding] == -1).all()
        assert not whole.present["pose"][padding].any()
        assert not whole.x["pose"][padding].any()

    def test_a_selection(self, dataset: Dataset) -> None:
        chosen = np.array([0, 9, 10, 11, 44, 89])
        whole = Batch.concat(passed(dataset, spec("p", select=chosen, batch=4), world=2))
        assert whole.index[whole.valid].tolist() == chosen.tolist()

    def test_an_empty_selection_has_no_batches(self, dataset: Dataset) -> None:
        assert passed(dataset, spec("p", select=np.array([], np.int64)), world=2) == []

    def test_more_ranks_than_samples_agree_on_the_number_of_batches(self, dataset: Dataset) -> None:
        batches = passed(dataset, spec("p", select=np.array([3, 8]), batch=4), world=4)
        assert len(batches) == 4
        assert [b.index.tolist() for b in batches] == [[3], [8], [-1], [-1]]


class TestCache:
    def test_it_changes_nothing(self, dataset: Dataset) -> None:
        def two_epochs(megabytes: int) -> list[Step]:
            with loader(dataset, config(cache_mb=megabytes)) as reading:
                return [
                    step
                    for e in (0, 1)
                    for step in reading.open_epoch([spec()], seed=1, epoch=e, steps=15)
                ]

        assert_same_steps(two_epochs(0), two_epochs(64))

    def test_what_is_cached_is_not_read_again(
        self, dataset: Dataset, reads: list[tuple[str, int]]
    ) -> None:
        with loader(dataset, config()) as reading:
            list(reading.open_pass(spec("p")))
            assert len(reads) == 90
            reads.clear()
            steps = list(reading.open_epoch([spec()], seed=1, epoch=0, steps=11))
            assert reads == []
        assert_same_steps(steps, epoch(dataset, config(cache_mb=0)))

    def test_only_what_another_stream_has_not_decoded_is_read(
        self, dataset: Dataset, reads: list[tuple[str, int]]
    ) -> None:
        with loader(dataset, config()) as reading:
            list(reading.open_pass(spec("p", modalities=("pose",), select=np.arange(30))))
            reads.clear()
            list(reading.open_pass(spec("q", modalities=("pose",), select=np.arange(20, 40))))
            assert len(reads) == 10
            list(reading.open_pass(spec("r", modalities=("pose", "force"), select=np.arange(5))))
            assert len(reads) == 15

    def test_workers_keep_their_caches_for_the_next_epoch(
        self, dataset: Dataset, tmp_path: Path
    ) -> None:
        copy = make_tiny(tmp_path, 24, 4, ("pose",))
        with loader_of(copy, ("pose",), config(workers=2)) as reading:
            what = spec("p", modalities=("pose",))
            first = list(reading.open_pass(what))
            for shard in copy.split("train").shards:
                copy.shard_path(shard).unlink()
            for one, other in zip(first, reading.open_pass(what), strict=True):
                assert_same(one, other)


def loader_of(
    dataset: Dataset, modalities: Sequence[str], cfg: StreamConfig, **ranks: int
) -> Loader:
    made = inputs(dataset) if len(modalities) > 1 else pose_input(dataset)
    return Loader(dataset, made, cfg, **ranks)


def pose_input(dataset: Dataset) -> dict[str, Transform]:
    return {"pose": VectorInput(dim=7).build(dataset, "pose", None)}


Samples = Sequence[Mapping[str, bytes]]
POSE = encode_npy(np.arange(7, dtype=np.float32))


def write(root: Path, shards: Sequence[Samples], classes: int = 2) -> Dataset:
    """Write a train split with exactly these members."""
    root.mkdir(exist_ok=True)
    infos = []
    for n, held in enumerate(shards):
        with ShardWriter(root / f"train-{n:06d}.tar") as shard:
            for i, members in enumerate(held):
                shard.add(f"k{n}{i:02d}", members)
        infos.append(shard.info)
    manifest = Manifest(
        name="hand-made",
        classes=tuple("ab"[:classes]),
        modalities={"pose": Modality(kind="vector", ext="npy", shape=(7,))},
        splits={"train": SplitInfo(samples=sum(i.samples for i in infos), shards=tuple(infos))},
    )
    write_manifest(root, manifest)
    return open_dataset(root)


def good(count: int) -> list[dict[str, bytes]]:
    return [{"pose.npy": POSE, "cls": b"1"} for _ in range(count)]


def pose_spec(**changes: Any) -> StreamSpec:
    return spec(modalities=("pose",), **changes)


class TestMembers:
    def test_targets_come_as_float_and_nan_where_absent(self, tmp_path: Path) -> None:
        held = good(8)
        for i in (0, 1, 2, 5):
            held[i]["target.npy"] = encode_npy(np.array([i, 0.5]))
        dataset = write(tmp_path, [held[:4], held[4:]])
        with loader_of(dataset, ("pose",), config(streams=2)) as reading:
            (batch,) = reading.open_pass(pose_spec())
            parts = [*reading.open_pass(pose_spec(batch=4))]
        assert batch.target is not None
        assert batch.target.dtype == torch.float32
        assert batch.target[:3].tolist() == [[0, 0.5], [1, 0.5], [2, 0.5]]
        assert batch.target.isnan().all(1).tolist() == [i not in (0, 1, 2, 5) for i in range(8)]
        assert all(part.target is not None for part in parts)

    def test_targets_of_different_shapes_are_refused(self, tmp_path: Path) -> None:
        held = good(4)
        held[0]["target.npy"], held[1]["target.npy"] = (
            encode_npy(np.zeros(2)),
            encode_npy(np.zeros(3)),
        )
        dataset = write(tmp_path, [held])
        with loader_of(dataset, ("pose",), config(streams=1)) as reading:
            with pytest.raises(UserError, match=r"target.npy.*\(2,\), \(3,\).*same shape"):
                list(reading.open_pass(pose_spec()))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_label_outside_the_classes_names_shard_key_and_value(
        self, tmp_path: Path, workers: int
    ) -> None:
        held = good(16)
        held[11]["cls"] = b"7"
        dataset = write(tmp_path, [held[:8], held[8:]])
        with loader_of(dataset, ("pose",), config(streams=2, workers=workers)) as reading:
            with pytest.raises(UserError, match=r"000001.tar.*'k103'.*label 7 is outside 0\.\.1"):
                list(reading.open_epoch([pose_spec()], seed=0, epoch=0, steps=2))

    def test_a_sample_without_class_has_label_minus_one(self, tmp_path: Path) -> None:
        dataset = write(tmp_path, [[{"pose.npy": POSE}]])
        with loader_of(dataset, ("pose",), config(streams=1)) as reading:
            (batch,) = reading.open_pass(pose_spec(batch=1))
        assert batch.label.tolist() == [-1]


def corrupt_dataset(root: Path, bad: Sequence[int], per_shard: int = 8) -> Dataset:
    """Four shards of good samples but for those at the indices `bad`."""
    held = good(4 * per_shard)
    for index in bad:
        held[index]["pose.npy"] = POSE[:-3]
    return write(root, [held[n * per_shard : (n + 1) * per_shard] for n in range(4)])


class TestDamage:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_corrupt_sample_is_replaced_counted_once_and_reported(
        self, tmp_path: Path, workers: int
    ) -> None:
        bad = [0, 9, 10, 31]
        dataset = corrupt_dataset(tmp_path, bad)
        with loader_of(dataset, ("pose",), config(workers=workers, cache_mb=0)) as reading:
            for number in range(3):
                steps = list(reading.open_epoch([pose_spec()], seed=0, epoch=number, steps=4))
                assert [len(s["all"]) for s in steps] == [8] * 4
                assert not np.isin(bad, torch.cat([s["all"].index for s in steps])).any()
            report = reading.ledger.report()
        assert sorted(r["index"] for r in report) == bad
        one = next(r for r in report if r["index"] == 9)
        assert (one["shard"], one["key"]) == ("train-000001.tar", "k101")
        assert "pose: " in str(one["reason"])

    def test_the_replacement_is_the_next_good_sample_of_the_block(self, tmp_path: Path) -> None:
        clean = corrupt_dataset(tmp_path / "clean", [])
        bad = list(range(0, 32, 3))
        dataset = corrupt_dataset(tmp_path / "bad", bad)

        def order(of: Dataset, start: int = 0) -> list[list[int]]:
            with loader_of(of, ("pose",), config(window=4, cache_mb=0)) as reading:
                steps = reading.open_epoch(
                    [pose_spec()], seed=0, epoch=0, start_step=start, steps=4
                )
                return [step["all"].index.tolist() for step in steps]

        want = [list(rows) for rows in order(clean)]
        for stream in range(4):
            for pair in ((0, 1), (2, 3)):  # a block of 4 positions is two steps of 2 rows
                places = [(t, 2 * stream + i) for t in pair for i in (0, 1)]
                block = [want[t][i] for t, i in places]
                for j, (t, i) in enumerate(places):
                    others = [*block[j:], *reversed(block[:j])]
                    want[t][i] = next(index for index in others if index not in bad)
        assert order(dataset) == want
        for start in (1, 2, 3):
            assert order(dataset, start) == want[start:]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_beyond_the_budget_the_run_stops_and_names_them(
        self, tmp_path: Path, workers: int
    ) -> None:
        dataset = corrupt_dataset(tmp_path, [1, 12, 20])
        cfg = config(workers=workers, max_skips=2)
        with loader_of(dataset, ("pose",), cfg) as reading:
            with pytest.raises(UserError) as caught:
                list(reading.open_epoch([pose_spec()], seed=0, epoch=0, steps=12))
        for name in ("train-000000.tar k001", "train-000001.tar k104", "train-000002.tar k204"):
            assert name in str(caught.value)
        assert "data.max_skips=2" in str(caught.value)

    def test_a_sample_that_is_bad_in_one_modality_serves_the_others(self, tmp_path: Path) -> None:
        whole = make_tiny(tmp_path, 8, 1, ("force", "pose"))
        original = inputs(whole)
        broken = dict(original, force=Refusing(original["force"]))
        with Loader(whole, broken, config(streams=1)) as reading:
            both, pose = spec("a"), spec("b", modalities=("pose",))
            epoch_of_both = reading.open_epoch([both, pose], seed=0, epoch=0, steps=1)
            step = next(epoch_of_both)
        assert 2 not in step["a"].index
        assert sorted(step["b"].index.tolist()) == list(range(8))

    def test_a_truncated_shard_loses_its_rest_only(self, tmp_path: Path) -> None:
        dataset = corrupt_dataset(tmp_path, [])
        path = dataset.shard_path(dataset.split("train").shards[1])
        os.truncate(path, path.stat().st_size // 2)
        with loader_of(dataset, ("pose",), config(streams=2, window=16)) as reading:
            steps = list(reading.open_epoch([pose_spec()], seed=0, epoch=0, steps=4))
            lost = sorted(int(r["index"]) for r in reading.ledger.report())
        assert lost == list(range(lost[0], 16))
        assert 8 < lost[0] < 16
        assert not np.isin(lost, torch.cat([s["all"].index for s in steps])).any()

    def test_a_block_without_good_samples_stops_the_run(self, tmp_path: Path) -> None:
        dataset = corrupt_dataset(tmp_path, list(range(32)))
        with loader_of(dataset, ("pose",), config()) as reading:
            with pytest.raises(UserError, match=r"none of 5 neighbouring samples.*train-00000"):
                list(reading.open_epoch([pose_spec()], seed=0, epoch=0, steps=4))

    def test_in_a_pass_a_corrupt_sample_keeps_its_row(self, tmp_path: Path) -> None:
        dataset = corrupt_dataset(tmp_path, [5])
        with loader_of(dataset, ("pose",), config()) as reading:
            whole = Batch.concat(list(reading.open_pass(pose_spec())))
            assert reading.ledger.count == 1
        assert whole.index.tolist() == list(range(32))
        assert bool(whole.valid.all())
        assert whole.label.tolist() == [1] * 5 + [-1] + [1] * 26
        assert whole.present["pose"].tolist() == [i != 5 for i in range(32)]


class Refusing(Transform):
    """Refuses the third sample."""

    def __init__(self, inner: Transform) -> None:
        super().__init__(inner.config, inner.shape, inner.dtype)
        self.inner = inner

    def __call__(self, value: Any, key: str) -> Tensor:
        if key == "train-00002":
            raise samples_module.DecodeError("does not fit")
        return self.inner(value, key)


def read_for_ever(dataset: Dataset, answer: Connection) -> None:
    """Start two workers, tell who they are, and wait for the end."""
    with loader(dataset, config(workers=2)) as reading:
        next(reading.open_epoch([spec()], seed=1, epoch=0, steps=11))
        answer.send([worker.pid for worker in multiprocessing.active_children()])
        time.sleep(600)


class TestWorkers:
    def test_they_ignore_the_signals_of_the_run(self, dataset: Dataset) -> None:
        before = set(multiprocessing.active_children())
        with loader(dataset, config(workers=2)) as reading:
            steps = reading.open_epoch([spec()], seed=1, epoch=0, steps=11)
            got = [next(steps)]
            workers = set(multiprocessing.active_children()) - before
            assert len(workers) == 2
            for worker in workers:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                    os.kill(int(worker.pid or 0), number)
            got += list(steps)
        assert_same_steps(got, epoch(dataset, config()))
        assert set(multiprocessing.active_children()) <= before

    def test_they_end_with_a_process_that_is_killed(self, dataset: Dataset) -> None:
        """Else they would wait for ever for an epoch, with whatever they inherited."""
        ours, theirs = multiprocessing.Pipe()
        rank = multiprocessing.get_context("fork").Process(
            target=read_for_ever, args=(dataset, theirs)
        )
        rank.start()
        workers = ours.recv()
        assert len(workers) == 2
        rank.kill()
        rank.join()
        while any(running(pid) for pid in workers):
            time.sleep(0.01)

    def test_an_epoch_may_be_left_early(self, dataset: Dataset) -> None:
        with loader(dataset, config(workers=2)) as reading:
            left = reading.open_epoch([spec()], seed=1, epoch=0, steps=11)
            next(left)
            whole = Batch.concat(list(reading.open_pass(spec("p", "test"))))
            assert whole.index[whole.valid].tolist() == list(range(13))
            with pytest.raises(RuntimeError, match="before this one ended"):
                next(left)
            again = list(reading.open_epoch([spec()], seed=1, epoch=0, steps=11))
        assert_same_steps(again, epoch(dataset, config()))

    def test_they_leave_the_global_random_state_alone(self, dataset: Dataset) -> None:
        torch.manual_seed(5)
        want = torch.rand(3)
        torch.manual_seed(5)
        epoch(dataset, config(workers=2))
        assert torch.equal(torch.rand(3), want)

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_program_that_does_not_close_its_loader_ends(
        self, dataset: Dataset, fails: bool
    ) -> None:
        command = [sys.executable, "-c", PROGRAM, str(dataset.root), "fail" if fails else "read"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        ended = subprocess.run(command, env=env, timeout=240, capture_output=True, text=True)
        assert ended.returncode == int(fails), ended.stderr
        if fails:
            assert "ZeroDivisionError" in ended.stderr
            assert "in sample 'train-000" in ended.stderr
        else:
            assert ended.stderr == ""


PROGRAM = """
import sys
import time
from outmodal.data.arrays import VectorInput
from outmodal.data.batch import StreamSpec
from outmodal.data.manifest import open_dataset
from outmodal.data.stream import Loader, StreamConfig

dataset = open_dataset(sys.argv[1])
pose = VectorInput(dim=7).build(dataset, "pose", None)
if sys.argv[2] == "fail":
    type(pose).__call__ = lambda self, value, key: 1 / 0
loader = Loader(dataset, {"pose": pose}, StreamConfig(workers=2, streams=2))
steps = loader.open_epoch([StreamSpec("a", "train", ("pose",), 8)], seed=0, epoch=0, steps=9)
next(steps)
"""


class TestChecks:
    def test_specs_that_do_not_fit_are_refused_before_anything_is_read(
        self, dataset: Dataset, reads: list[tuple[str, int]]
    ) -> None:
        cases = [
            (
                config(),
                spec(batch=6),
                "data.streams=4 does not divide the batch of 6 of stream 'all'",
            ),
            (config(streams=96, batch=96), spec(batch=96), "'train' has 90 samples.*streams=48"),
            (config(), spec(split="trian"), "no split 'trian'; did you mean 'train'"),
            (config(), spec(modalities=("pos",)), "modality 'pos'.*did you mean 'pose'"),
            (config(workers=3), spec(), "data.streams=4.*1 ranks x 3 workers.*data.workers=2"),
        ]
        for cfg, what, message in cases:
            with loader(dataset, cfg) as reading:
                with pytest.raises(UserError, match=message):
                    reading.open_epoch([what], seed=0, epoch=0, steps=1)
        assert reads == []

    def test_streams_are_chosen_or_checked(self) -> None:
        assert resolve_streams(StreamConfig(), [10] * 20, 128, 2) == 16
        assert resolve_streams(StreamConfig(workers=3), [10] * 20, 96, 1) == 12
        assert resolve_streams(StreamConfig(streams=8), [10] * 20, 128, 4) == 8
        with pytest.raises(UserError, match=r"data.streams=8"):
            resolve_streams(StreamConfig(streams=8), [10] * 20, 128, 3)

    def test_steps_follow_from_sizes(self, dataset: Dataset) -> None:
        assert steps_per_epoch(dataset, "train", 8, 4) == 11
        with pytest.raises(UserError, match=r"90 samples, fewer than data.batch=128: use"):
            steps_per_epoch(dataset, "train", 128, 4)
