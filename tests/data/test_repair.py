"""A repaired data set lacks what was broken, and nothing else."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outmodal.data import repair as repair_module
from outmodal.data.arrays import VectorInput
from outmodal.data.batch import StreamSpec
from outmodal.data.check import check_dataset
from outmodal.data.index import index_folder
from outmodal.data.labels import read_labels
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.repair import LeftOut, repair_dataset
from outmodal.data.shards import read_shard, scan_shard
from outmodal.data.stream import Loader, StreamConfig
from outmodal.errors import UserError
from tests.data.test_check import rewrite
from tests.data.tiny import make_tiny


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_tiny(tmp_path / "old", missing={"speech": {1, 2}})


def broken(dataset: Dataset) -> Dataset:
    """Three kinds of bad samples in the first shard; the second is cut in its middle."""

    def spoil(samples: dict[str, dict[str, bytes]]) -> None:
        samples["train-00002"]["image.png"] = b"no image"
        samples["train-00003"]["cls"] = b"many"
        samples["train-00005"]["odd.bin"] = b"?"

    rewrite(dataset, "train-000000.tar", spoil)
    path = dataset.root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: scan_shard(path).members(5)[1].offset + 20])
    return open_dataset(dataset.root, verify=False)


def contents(dataset: Dataset) -> dict[str, dict[str, bytes]]:
    return {
        key: members
        for split in dataset.manifest.splits.values()
        for shard in split.shards
        for _, key, members in read_shard(dataset.shard(shard))
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
def test_good_samples_are_kept_byte_for_byte(
    dataset: Dataset, tmp_path: Path, workers: int
) -> None:
    before = contents(dataset)
    bad = broken(dataset)
    original = files(dataset.root)
    seen: list[tuple[int, int]] = []
    repair = repair_dataset(bad, tmp_path / "new", workers, lambda *done: seen.append(done))
    assert files(dataset.root) == original
    mended = open_dataset(tmp_path / "new")
    assert check_dataset(mended).ok
    assert len(seen) == 5
    lost = {"train-00002", "train-00003", *(f"train-{n:05d}" for n in range(13, 16))}
    assert contents(mended) == {key: found for key, found in before.items() if key not in lost}
    assert (repair.samples, repair.rewritten) == (31, 2)
    assert read_labels(mended, "train")[:4].tolist() == [0, 1, 1, 2]
    kept = os.stat(tmp_path / "new/test-000000.tar")
    assert kept.st_ino == os.stat(dataset.root / "test-000000.tar").st_ino  # linked, not copied


def test_what_was_left_out_is_listed(dataset: Dataset, tmp_path: Path) -> None:
    repair = repair_dataset(broken(dataset), tmp_path / "new")
    listed = json.loads((tmp_path / "new/repair.json").read_text())
    assert [LeftOut(**item) for item in listed["left_out"]] == list(repair.left_out)
    assert listed["source"] == str(dataset.root)
    named = {(item.shard, item.key, item.member) for item in repair.left_out}
    assert named == {
        ("train-000000.tar", "train-00002", ""),
        ("train-000000.tar", "train-00003", ""),
        ("train-000000.tar", "train-00005", "odd.bin"),
        ("train-000001.tar", "", ""),
    }
    reasons = "\n".join(item.reason for item in repair.left_out)
    assert "not a readable image" in reasons
    assert "label 'many' is not an integer" in reasons
    assert "holds 5 whole samples" in reasons
    assert [str(problem) for problem in repair.report.problems] == listed["problems"]


def test_a_whole_data_set_and_one_with_index_files(dataset: Dataset, tmp_path: Path) -> None:
    repair = repair_dataset(dataset, tmp_path / "new")
    assert (repair.left_out, repair.rewritten, repair.samples) == ((), 0, 36)
    assert contents(open_dataset(tmp_path / "new")) == contents(dataset)
    index_folder(dataset.root)
    (dataset.root / "train-000000.tar.index").write_bytes(b"broken")
    again = repair_dataset(open_dataset(dataset.root), tmp_path / "third")
    assert [problem.kind for problem in again.report.problems] == ["index"]
    assert again.left_out == ()
    assert check_dataset(open_dataset(tmp_path / "third")).ok
    assert (tmp_path / "third/train-000000.tar.index").is_file()


def test_missing_shards_repeated_keys_and_wrong_checksums(dataset: Dataset, tmp_path: Path) -> None:
    (dataset.root / "train-000000.tar").unlink()
    twice = dataset.root / "train-000001.tar"
    whole = twice.read_bytes()
    twice.write_bytes(whole[: int(scan_shard(twice).ends[-1])] + whole)
    manifest = dataset.root / "dataset.json"
    true = dataset.manifest.splits["train"].shards[2].sha256
    manifest.write_text(manifest.read_text().replace(true, "0" * 64))
    bad = open_dataset(dataset.root, verify=False)
    repair = repair_dataset(bad, tmp_path / "new")
    mended = open_dataset(tmp_path / "new")
    assert check_dataset(mended).ok
    assert [shard.samples for shard in mended.manifest.splits["train"].shards] == [8, 8]
    assert mended.manifest.splits["train"].shards[1].sha256 == true
    missing = [item for item in repair.left_out if item.shard == "train-000000.tar"]
    assert [item.reason for item in missing] == ["missing, but dataset.json lists it"]
    repeated = [item for item in repair.left_out if "occurs twice" in item.reason]
    assert len(repeated) == 8


def test_a_split_without_a_good_sample_goes(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("test-000000.tar", "test-000001.tar"):
        (dataset.root / name).write_bytes(b"x" * 4000)
    repair_dataset(open_dataset(dataset.root, verify=False), tmp_path / "new")
    assert list(open_dataset(tmp_path / "new").manifest.splits) == ["train"]
    for path in dataset.root.glob("train*.tar"):
        path.unlink()
    with pytest.raises(UserError, match="nothing to repair"):
        repair_dataset(open_dataset(dataset.root, verify=False), tmp_path / "none")
    assert not (tmp_path / "none/dataset.json").exists()


def test_a_stopped_repair_goes_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, out = broken(dataset), tmp_path / "new"
    checked: list[str] = []
    check = repair_module.check_shard

    def stopping(place: object, expected: object, shard: object) -> object:
        checked.append(shard.file)  # type: ignore[attr-defined]
        if len(checked) == 3:
            raise KeyboardInterrupt
        return check(place, expected, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(repair_module, "check_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        repair_dataset(bad, out)
    assert not (out / "dataset.json").exists()
    repair = repair_dataset(bad, out)
    order = [shard.file for split in bad.manifest.splits.values() for shard in split.shards]
    assert checked == [*order[:3], *order[2:]]
    monkeypatch.undo()
    assert check_dataset(open_dataset(out)).ok
    fresh = repair_dataset(bad, tmp_path / "fresh")
    assert (fresh.left_out, fresh.report) == (repair.left_out, repair.report)
    assert repair_dataset(bad, out) == repair


def test_a_loader_reads_all_of_it(dataset: Dataset, tmp_path: Path) -> None:
    repair_dataset(broken(dataset), tmp_path / "new")
    mended = open_dataset(tmp_path / "new")
    inputs = {"pose": VectorInput(dim=7).build(mended, "pose", None)}
    config = StreamConfig(batch=19, streams=1, window=4, max_skips=0)
    spec = StreamSpec("all", "train", ("pose",), 19)
    with Loader(mended, inputs, config, rank=0, world=1) as loader:
        (step,) = loader.open_epoch([spec], seed=0, epoch=0, start_step=0, steps=1)
    assert sorted(step["all"].index.tolist()) == list(range(6 + 5 + 8))


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes: as good as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_gives_one_clear_error(dataset: Dataset, tmp_path: Path) -> None:
    bad, out = broken(dataset), tmp_path / "new"
    with small_files(20_000), pytest.raises(UserError, match=r"cannot write .*new.*free space"):
        repair_dataset(bad, out)
    assert not list(out.glob("*.partial"))
    assert not list(out.glob(".*.partial"))
    repair_dataset(bad, out)
    assert check_dataset(open_dataset(out)).ok


def test_other_folders_are_safe(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never changed"):
        repair_dataset(dataset, dataset.root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(it holds 'notes.txt'\)"):
        repair_dataset(dataset, tmp_path / "mine")
    repair_dataset(dataset, tmp_path / "new")
    other = make_tiny(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="other settings"):
        repair_dataset(other, tmp_path / "new")
