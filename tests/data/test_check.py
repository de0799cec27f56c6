"""The check finds everything that is wrong, and says where."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.data import check_shard, tasks
from outmodal.data.check import CheckReport, Problem, ShardReport, check_dataset
from outmodal.data.encode import encode_npy
from outmodal.data.index import index_folder
from outmodal.data.manifest import Dataset, open_dataset, read_manifest
from outmodal.data.opening import open_data
from outmodal.data.shard_index_file import pack_index
from outmodal.data.shards import ShardWriter, read_shard, scan_shard
from outmodal.data.stats import dataset_stats
from outmodal.data.store import StoreError
from outmodal.data.store_local import LocalFile, LocalShard, LocalStore
from outmodal.data.stream import StreamConfig
from tests.data.tiny import make_tiny


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_tiny(tmp_path, missing={"speech": {1, 2}})


def check(dataset: Dataset) -> CheckReport:
    return check_dataset(open_dataset(dataset.root, verify=False))


def rewrite(dataset: Dataset, file: str, change: Any) -> None:
    """Write a shard again with changed samples, and tell the manifest its new hash and size."""
    path = dataset.root / file
    samples = {key: members for _, key, members in read_shard(path)}
    change(samples)
    with ShardWriter(path) as shard:
        for key, members in samples.items():
            shard.add(key, members)
    manifest = dataset.root / "dataset.json"
    content = json.loads(manifest.read_text())
    for split in content["splits"].values():
        for entry in split["shards"]:
            if entry["file"] == file:
                entry.update(bytes=shard.info.bytes, sha256=shard.info.sha256)
    manifest.write_text(json.dumps(content))


def test_a_good_data_set_has_no_problems(dataset: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    report = check_dataset(dataset, progress=lambda done, total: seen.append((done, total)))
    assert (report.ok, report.problems, report.samples, report.kinds) == (True, (), 36, {})
    first = dataset.manifest.splits["train"].shards[0]
    assert len(report.shards) == 5
    assert report.shards[0] == ShardReport(first.file, "train", 8, first.bytes, 0)
    assert seen == [(8, 36), (16, 36), (24, 36), (30, 36), (36, 36)]


def test_processes_find_the_same(dataset: Dataset) -> None:
    rewrite(dataset, "train-000001.tar", lambda s: s["train-00009"].update(cls=b"7"))
    (dataset.root / "train-000002.tar").write_bytes(b"x" * 900)
    opened = open_dataset(dataset.root, verify=False)
    report = check_dataset(opened, workers=2)
    assert report == check_dataset(opened)
    assert not report.ok


def test_shards_of_a_process_that_died_are_named(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(ThreadPoolExecutor):
        def __init__(self, workers: int, **_: object) -> None:
            super().__init__(workers)

        def submit(self, *call: Any, **more: Any) -> Any:
            job: Future[object] = Future()
            job.set_exception(BrokenProcessPool("killed"))
            return job if call[3].file == "train-000001.tar" else super().submit(*call, **more)

    monkeypatch.setattr(tasks, "ProcessPoolExecutor", Dying)
    report = check_dataset(dataset, workers=2)
    assert [(p.shard, p.kind) for p in report.problems] == [("train-000001.tar", "not checked")]
    assert "fewer workers" in str(report.problems[0])
    assert report.samples == 28


def test_every_bad_member_is_named(dataset: Dataset) -> None:
    def spoil(samples: dict[str, dict[str, bytes]]) -> None:
        samples["train-00000"]["image.png"] = b"no image"
        samples["train-00001"]["cls"] = b"3"
        samples["train-00002"]["odd.bin"] = b"?"
        samples["train-00003"]["image.jpg"] = samples["train-00003"]["image.png"]
        samples["train-00004"]["pose.npy"] = encode_npy(np.ones(6))
        samples["train-00005"]["json"] = b"{"
        samples["train-00006"]["target.npy"] = b"rubbish"
        samples["train-00007"] = {"cls": b"0"}

    rewrite(dataset, "train-000000.tar", spoil)
    report = check(dataset)
    assert len(report.problems) == 8
    expected = [
        ("train-00000", "modality 'image': not a readable image"),
        ("train-00001", "label 3 is outside 0..2"),
        ("train-00002", "'odd.bin' belongs to no modality"),
        ("train-00003", "two members for modality 'image': image.jpg, image.png"),
        ("train-00004", "shape [6] where the manifest says [7]"),
        ("train-00005", "json:"),
        ("train-00006", "target.npy: not a readable npy"),
        ("train-00007", "no modality at all"),
    ]
    for problem, (key, text) in zip(report.problems, expected, strict=True):
        assert str(problem).startswith(f"train-000000.tar: sample '{key}': ")
        assert text in problem.detail
        assert (problem.key, problem.position) == (key, int(key[-5:]))
    assert report.kinds == {"member": 3, "corrupt": 2, "label": 1, "json": 1, "target": 1}
    shown = json.loads(json.dumps(report.as_json()))
    assert shown["problems"][0]["text"] == str(report.problems[0])
    assert [shard["problems"] for shard in shown["shards"]] == [8, 0, 0, 0, 0]


def test_missing_and_unlisted_shards_are_named_with_all_else(dataset: Dataset) -> None:
    (dataset.root / "train-000001.tar").rename(dataset.root / "other.tar")
    report = check(dataset)
    assert tuple(map(str, report.problems)) == (
        "other.tar: lies in the folder, but dataset.json does not list it",
        "train-000001.tar: missing, but dataset.json lists it",
    )
    assert report.samples == 28


def test_a_changed_byte_is_found_by_its_hash(dataset: Dataset) -> None:
    path = dataset.root / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[scan_shard(path).members(0)[0].offset + 400] ^= 1  # padding: nothing else notices
    path.write_bytes(data)
    (problem,) = check(dataset).problems
    assert str(problem).startswith("train-000000.tar: sha256 is ")
    assert hashlib.sha256(data).hexdigest() in str(problem)


@pytest.mark.parametrize("kind", ["cut in a member", "cut in a header", "zeros in the middle"])
def test_damage_is_placed(dataset: Dataset, kind: str) -> None:
    path = dataset.root / "train-000001.tar"
    data = bytearray(path.read_bytes())
    at = scan_shard(path).members(5)[1].offset
    if kind == "cut in a member":
        data = data[: at + 20]
    elif kind == "cut in a header":
        data = data[: at - 100]
    else:
        data[at - 512 : at + 512] = bytes(1024)
    path.write_bytes(data)
    report = check(dataset)
    text = "\n".join(map(str, report.problems))
    assert report.samples == 36 - 8 + 5
    assert "train-000001.tar: sha256" in text
    assert "train-000001.tar: holds 5 whole samples, dataset.json says 8" in text
    assert "(5 whole samples before it)" in text
    assert ("bytes, dataset.json says" in text) == kind.startswith("cut")


def test_a_manifest_of_another_data_set(tmp_path: Path) -> None:
    make_tiny(tmp_path / "a", samples=24)
    make_tiny(tmp_path / "b", samples=30, modalities=("image", "pose"))
    (tmp_path / "a/dataset.json").write_bytes((tmp_path / "b/dataset.json").read_bytes())
    report = check(Dataset(tmp_path / "a", read_manifest(tmp_path / "a")))
    text = "\n".join(map(str, report.problems))
    assert not report.ok
    assert "train-000000.tar: holds 8 whole samples, dataset.json says 10" in text
    assert "member 'speech.wav' belongs to no modality" in text


def test_an_empty_split_and_a_repeated_key_are_problems(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, test=0)
    path = dataset.root / "train-000000.tar"
    data = path.read_bytes().replace(b"train-00002.", b"train-00000.")
    path.write_bytes(data)
    text = "\n".join(map(str, check(dataset).problems))
    assert "dataset.json: split 'test' is empty" in text
    # The header's checksum no longer fits, so the tar ends there; see the next test for keys.
    assert "holds 1 whole samples" in text


def test_a_repeated_key_is_a_problem(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path)
    path = dataset.root / "train-000000.tar"
    whole = path.read_bytes()
    used = int(scan_shard(path).ends[-1])
    path.write_bytes(whole[:used] + whole)
    text = "\n".join(map(str, check(dataset).problems))
    assert "train-000000.tar: sample 'train-00000': its key occurs twice" in text
    assert "holds 16 whole samples" in text


def test_parts_of_a_shard_say_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A giant shard is shared out: where its parts end does not show."""
    rewrite(dataset, "train-000001.tar", lambda s: s["train-00013"].update(cls=b"7"))
    path = dataset.root / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:40000])
    whole = check(dataset)
    monkeypatch.setattr(check_shard, "PART", 3)
    assert check(dataset) == whole
    assert {problem.kind for problem in whole.problems} >= {"label", "damage", "count", "bytes"}


def test_index_files_are_verified(dataset: Dataset) -> None:
    name = "train-000000.tar.index"
    index_folder(dataset.root)
    opened = open_dataset(dataset.root, verify=False)
    assert check(opened).ok
    good = (dataset.root / name).read_bytes()
    other = (dataset.root / "train-000001.tar.index").read_bytes()
    place = LocalShard(dataset.root / "train-000000.tar")
    false = pack_index(scan_shard(place), opened.manifest.splits["train"].shards[0].sha256, None)
    labels = pack_index(
        scan_shard(place),
        opened.manifest.splits["train"].shards[0].sha256,
        np.zeros(8, np.int64),
    )
    moved = false.replace(b"train-00003", b"train-0000x")
    for data in (good[:-8], other, moved, labels, b""):
        (dataset.root / name).write_bytes(data)
        problems = check(opened).problems
        assert [(p.shard, p.kind) for p in problems] == [("train-000000.tar", "index")]
        assert "outmodal data index" in str(problems[0])


def test_keys_cannot_disturb_a_terminal() -> None:
    problem = Problem("a.tar", "corrupt", "bad", "k\x1b[2J\n", 0)
    assert str(problem) == "a.tar: sample 'k\\x1b[2J\\n': bad"


def test_a_shard_on_another_machine_that_is_absent(dataset: Dataset) -> None:
    """A place that refuses or breaks is a problem of its shard; the check goes on."""

    @dataclass(frozen=True)
    class Refusing(LocalStore):
        def shard(self, name: str, size: int, sha256: str) -> LocalShard:
            return Absent(self.folder / name, size, sha256)

    remote = Dataset(Refusing(dataset.root), dataset.manifest)
    report = check_dataset(remote)
    assert report.samples == 36 - 8
    assert [(p.shard, p.kind) for p in report.problems] == [("train-000001.tar", "unreadable")]
    assert "503" in str(report.problems[0])


@dataclass(frozen=True)
class Absent(LocalShard):
    """A place that does not give one shard."""

    def open(self) -> LocalFile:
        if self.name == "train-000001.tar":
            raise StoreError("the server answered 503")
        return super().open()


def test_a_mixture_is_checked_by_what_each_source_says(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modalities and classes are those of the shard's own data set."""
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    other = make_tiny(tmp_path / "other", modalities=("pose", "image"), classes=4, seed=3)
    sources = [{"path": str(dataset.root)}, {"path": str(other.root)}]
    mixed = open_data(StreamConfig.model_validate({"mix": sources}))
    assert check_dataset(mixed).problems == ()
    assert check_dataset(mixed).samples == 72
    path = other.root / "train-000001.tar"
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"\x00PNG", 1))
    problems = check_dataset(mixed).problems
    assert [problem.kind for problem in problems] == ["sha256", "corrupt"]
    assert all("train-000001.tar" in problem.shard for problem in problems)
    stats = dataset_stats(mixed, sample=4)["splits"]["train"]
    assert stats["modalities"]["speech"]["missing_rate"] == pytest.approx(26 / 48)
