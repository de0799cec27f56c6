"""The check finds everything that is wrong, and says where."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.data import check as check_module
from outmodal.data.check import CheckReport, check_dataset
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import Dataset, open_dataset, read_manifest
from outmodal.data.shards import ShardWriter, read_shard, scan_shard
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
    assert report == CheckReport(ok=True, problems=(), samples=36, shards=5)
    assert seen == [(n, 5) for n in range(1, 6)]


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
            return job if call[-1].file == "train-000001.tar" else super().submit(*call, **more)

    monkeypatch.setattr(check_module, "ProcessPoolExecutor", Dying)
    report = check_dataset(dataset, workers=2)
    assert [p.partition(":")[0] for p in report.problems] == ["train-000001.tar"]
    assert "fewer workers" in report.problems[0]
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
        assert problem.startswith(f"train-000000.tar: sample '{key}': ")
        assert text in problem


def test_missing_and_unlisted_shards_are_named_with_all_else(dataset: Dataset) -> None:
    (dataset.root / "train-000001.tar").rename(dataset.root / "other.tar")
    report = check(dataset)
    assert report.problems == (
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
    assert problem.startswith("train-000000.tar: sha256 is ")
    assert hashlib.sha256(data).hexdigest() in problem


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
    text = "\n".join(report.problems)
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
    text = "\n".join(report.problems)
    assert not report.ok
    assert "train-000000.tar: holds 8 whole samples, dataset.json says 10" in text
    assert "member 'speech.wav' belongs to no modality" in text


def test_an_empty_split_and_a_repeated_key_are_problems(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, test=0)
    path = dataset.root / "train-000000.tar"
    data = path.read_bytes().replace(b"train-00002.", b"train-00000.")
    path.write_bytes(data)
    text = "\n".join(check(dataset).problems)
    assert "dataset.json: split 'test' is empty" in text
    # The header's checksum no longer fits, so the tar ends there; see the next test for keys.
    assert "holds 1 whole samples" in text


def test_a_repeated_key_is_a_problem(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path)
    path = dataset.root / "train-000000.tar"
    whole = path.read_bytes()
    used = int(scan_shard(path).ends[-1])
    path.write_bytes(whole[:used] + whole)
    text = "\n".join(check(dataset).problems)
    assert "train-000000.tar: key 'train-00000' occurs twice" in text
    assert "holds 16 whole samples" in text
