"""Labels: read without the rest, refused by name, and cached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.data import labels as labels_module
from outmodal.data.cache import cache_dir, write_atomic
from outmodal.data.labels import read_labels, shard_labels
from outmodal.data.manifest import Dataset, Manifest, Modality, SplitInfo
from outmodal.data.shard_index import _scan
from outmodal.data.shards import ShardWriter, scan_shard
from outmodal.errors import UserError
from tests.data.tiny import make_tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def with_labels(root: Path, values: list[bytes | None], classes: int = 3) -> Dataset:
    """A data set of one shard whose samples have these `.cls` members."""
    root.mkdir(exist_ok=True)
    with ShardWriter(root / "train-000000.tar") as shard:
        for n, value in enumerate(values):
            members = {"text.txt": b"x" * 50_000}
            shard.add(f"{n:03d}", members if value is None else {**members, "cls": value})
    manifest = Manifest(
        name="labels",
        classes=tuple(f"c{n}" for n in range(classes)),
        modalities={"text": Modality(kind="text", ext="txt")},
        splits={"train": SplitInfo(samples=len(values), shards=(shard.info,))},
    )
    return Dataset(root, manifest)


def test_labels_come_in_the_order_of_the_shards(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", samples=10, shards=3, classes=4)
    found = read_labels(dataset, "train")
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.arange(10) % 4)


def test_absent_is_minus_one(tmp_path: Path) -> None:
    dataset = with_labels(tmp_path / "data", [b"0", None, b" 2\n", None])
    np.testing.assert_array_equal(read_labels(dataset, "train"), [0, -1, 2, -1])


def test_only_labels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = with_labels(tmp_path / "data", [b"%d" % (n % 3) for n in range(20)])
    (shard,) = dataset.split("train").shards
    total = 0
    plain = os.pread

    def counting(handle: int, size: int, offset: int) -> bytes:
        nonlocal total
        total += size
        return plain(handle, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    assert shard_labels(dataset, shard).tolist() == [n % 3 for n in range(20)]
    assert total == 0  # the index file has them
    (dataset.root / "train-000000.tar.index").unlink()
    _scan.cache_clear()
    scan_shard(dataset.shard(shard))
    total = 0
    assert shard_labels(dataset, shard).tolist() == [n % 3 for n in range(20)]
    assert total == 20


@pytest.mark.parametrize("value", [b"3", b"-1", b"99999999999999999999"])
def test_label_outside_the_classes(tmp_path: Path, value: bytes) -> None:
    dataset = with_labels(tmp_path / "data", [b"0", value])
    with pytest.raises(
        UserError, match=r"train-000000\.tar: sample '001': label .* is outside 0\.\.2"
    ):
        read_labels(dataset, "train")


@pytest.mark.parametrize(
    "value", [b"", b"one", b"1.0", b"\xff\xfe", b"1 2", b"1" * 100, b"\xd9\xa3"]
)
def test_label_that_is_no_integer(tmp_path: Path, value: bytes) -> None:
    dataset = with_labels(tmp_path / "data", [b"0", value])
    with pytest.raises(UserError, match=r"sample '001': label '.*' is not an integer"):
        read_labels(dataset, "train")


def test_shard_that_disagrees_with_the_manifest(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data")
    other = make_tiny(tmp_path / "other", samples=27)
    swapped = Dataset(other.root, dataset.manifest)
    with pytest.raises(UserError, match=r"train-000000\.tar: holds 9 whole samples.* says 8"):
        read_labels(swapped, "train")
    path = dataset.root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"train-000001\.tar.*data check"):
        read_labels(dataset, "train")
    path.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar.*restore"):
        read_labels(dataset, "train")


def test_unknown_and_empty_split(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", test=0)
    with pytest.raises(UserError, match="did you mean 'train'"):
        read_labels(dataset, "trian")
    with pytest.raises(UserError, match="empty"):
        read_labels(dataset, "test")


def test_second_reading_opens_no_shard(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data")
    found = read_labels(dataset, "train")
    for path in dataset.root.glob("*.tar"):
        path.unlink()
    np.testing.assert_array_equal(read_labels(dataset, "train"), found)


@pytest.mark.parametrize(
    "broken",
    [b"", b"rubbish", np.arange(3).tobytes()],
)
def test_broken_cache_is_made_again(tmp_path: Path, cache: Path, broken: bytes) -> None:
    dataset = make_tiny(tmp_path / "data")
    found = read_labels(dataset, "train")
    (file,) = cache.rglob("*.npy")
    file.write_bytes(broken)
    np.testing.assert_array_equal(read_labels(dataset, "train"), found)
    assert np.load(file).shape == (24,)


@pytest.mark.parametrize(
    "wrong", [np.zeros(5, np.int64), np.zeros(24), np.full(24, 9), np.full(24, -2)]
)
def test_cache_that_does_not_fit_is_made_again(tmp_path: Path, cache: Path, wrong: Any) -> None:
    dataset = make_tiny(tmp_path / "data")
    found = read_labels(dataset, "train")
    (file,) = cache.rglob("*.npy")
    np.save(file, wrong)
    np.testing.assert_array_equal(read_labels(dataset, "train"), found)


def test_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_tiny(tmp_path / "data")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labels_module, "write_atomic", full)
    assert len(read_labels(dataset, "train")) == 24
    assert "No space left" in caplog.text


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("OUTMODAL_CACHE", "")
    assert cache_dir() == Path.home() / ".cache/outmodal"


def test_atomic_writing_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
