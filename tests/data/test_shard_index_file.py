"""Index files: equal to a scan, believed only where they fit, and harmless whatever they hold."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from outmodal.data import shard_index_file
from outmodal.data.index import index_folder
from outmodal.data.labels import read_labels
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.shard_index import ShardIndex, _scan, scan_shard
from outmodal.data.shard_index_file import (
    index_problem,
    label_array,
    pack_index,
    parse_index,
)
from outmodal.data.shard_writer import move_shard
from outmodal.data.shards import ShardWriter, read_shard
from outmodal.data.store_local import LocalShard
from outmodal.errors import UserError
from tests.data.tiny import make_tiny

ARRAYS = ("starts", "ends", "first", "offsets", "sizes", "checks")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "derived"))
    _scan.cache_clear()
    shard_index_file._warned.clear()


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    return make_tiny(tmp_path / "set", 30, 3, ("pose", "text"), missing={"text": [2, 11]})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("lies") / "set", 30, 3, ("pose", "text"))


def equal(a: ShardIndex, b: ShardIndex) -> bool:
    same = a.keys == b.keys and a.names == b.names and (a.bytes, a.damage) == (b.bytes, b.damage)
    return same and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ARRAYS)


def place_of(dataset: Dataset, number: int = 0) -> LocalShard:
    place = dataset.shard(dataset.split("train").shards[number])
    assert isinstance(place, LocalShard)
    return place


def index_of(place: LocalShard) -> Path:
    return Path(f"{place.path}.index")


def test_what_the_writer_wrote_is_what_a_scan_finds(tiny: Dataset) -> None:
    for info in tiny.split("train").shards:
        place = tiny.shard(info)
        scanned = scan_shard(tiny.shard_path(info))  # a bare path: no index file is believed
        known = scan_shard(place)
        assert scanned.labels is None
        assert known.labels is not None
        assert equal(known, scanned)
        assert list(read_shard(place)) == list(read_shard(tiny.shard_path(info)))


def test_it_holds_the_labels(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_labels(tiny, "train")
    for info in tiny.split("train").shards:
        Path(f"{tiny.shard_path(info)}.index").unlink()
    _scan.cache_clear()
    (Path(os.environ["OUTMODAL_CACHE"]) / "labels").rename(tiny.root / "elsewhere")
    assert np.array_equal(read_labels(tiny, "train"), expected)


def test_data_index_makes_the_same_files(tiny: Dataset) -> None:
    files = sorted(tiny.root.glob("*.index"))
    before = {path.name: path.read_bytes() for path in files}
    assert len(before) == 5
    for path in files:
        path.unlink()
    index_folder(tiny.root)
    assert {path.name: path.read_bytes() for path in tiny.root.glob("*.index")} == before
    assert open_dataset(tiny.root) == tiny


def test_foreign_tars_with_long_names(tmp_path: Path) -> None:
    names = [f"{'d' * 60}/ö{n}{'k' * 60}.{s}" for n in range(3) for s in ("text.TXT", "cls")]
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("__meta__/x.txt", *names):
            info = tarfile.TarInfo(name)
            data = b"1" if name.endswith("cls") else name.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_folder(tmp_path)
    dataset = open_dataset(tmp_path)
    place = place_of(dataset)
    scanned, known = scan_shard(place.path), scan_shard(place)
    assert known.labels is not None
    assert known.labels.tolist() == [1, 1, 1]
    assert (known.keys, known.names) == (scanned.keys, scanned.names)
    assert list(read_shard(place)) == list(read_shard(place.path))
    assert [m["text.txt"] for _, _, m in read_shard(place)] == [n.encode() for n in names[::2]]


def test_a_label_that_is_none_is_left_to_readers(tmp_path: Path) -> None:
    assert label_array([b"1", None, b" 2\n"]) is not None
    for bad in (b"", b"x", b"-1", b"9" * 40, b"1.0"):
        assert label_array([b"1", bad]) is None
    dataset = make_tiny(tmp_path / "set", 4, 1, ("pose",))
    with ShardWriter(dataset.root / "train-000000.tar") as shard:
        shard.add("a", {"pose.npy": b"", "cls": b"one"})
    assert scan_shard(LocalShard(shard.path, shard.info.bytes, shard.info.sha256)).labels is None


def test_an_index_of_another_version_is_ignored_with_one_warning(
    tiny: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [list(read_shard(place_of(tiny, n).path)) for n in range(3)]
    for n in range(3):
        index_of(place_of(tiny, n)).write_bytes(index_of(place_of(tiny, (n + 1) % 3)).read_bytes())
    assert [list(read_shard(place_of(tiny, n))) for n in range(3)] == expected
    assert caplog.text.count("another version of the shard") == 1
    assert f"outmodal data index {tiny.root}" in caplog.text
    assert "another version" in str(index_problem(place_of(tiny)))


def test_a_good_index_has_no_problem(tiny: Dataset) -> None:
    assert index_problem(place_of(tiny)) is None
    index_of(place_of(tiny)).unlink()
    assert index_problem(place_of(tiny)) is None
    assert index_problem(LocalShard(place_of(tiny).path)) is None


def test_a_shard_that_changed_under_its_index_is_damage(tiny: Dataset) -> None:
    place = place_of(tiny)
    data = bytearray(place.path.read_bytes())
    data[100] ^= 1  # in the first header
    place.path.write_bytes(data)
    with pytest.raises(Exception, match="changed while it was read: a header"):
        list(read_shard(place))


def test_a_shard_moves_with_its_index(tiny: Dataset, tmp_path: Path) -> None:
    place = place_of(tiny)
    content = index_of(place).read_bytes()
    move_shard(place.path, tmp_path / "other.tar")
    assert (tmp_path / "other.tar.index").read_bytes() == content
    assert not index_of(place).exists()
    index_of(place_of(tiny, 1)).unlink()
    move_shard(place_of(tiny, 1).path, tmp_path / "bare.tar")
    assert not (tmp_path / "bare.tar.index").exists()


def test_a_writer_without_index_leaves_no_old_one(tiny: Dataset) -> None:
    place = place_of(tiny)
    with ShardWriter(place.path, index=False) as shard:
        shard.add("a", {"cls": b"1"})
    assert not index_of(place).exists()


def test_equal_shards_have_equal_indexes_in_every_process(tmp_path: Path) -> None:
    roots = [make_tiny(tmp_path / name, 12, 2, ("pose",)).root for name in "ab"]
    first, second = ({p.name: p.read_bytes() for p in root.glob("*.index")} for root in roots)
    assert first == second


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_tiny(tmp_path / "set", 4, 1, ("pose",))

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "there")

    monkeypatch.setattr("outmodal.data.index.write_index", refuse)
    with pytest.raises(UserError, match="there: Permission denied"):
        index_folder(dataset.root)


def about(arrays: dict[str, Any], **changes: Any) -> None:
    found = {**json.loads(arrays["about"].tobytes()), **changes}
    arrays["about"] = np.frombuffer(json.dumps(found).encode(), np.uint8)


def put(name: str, at: int, value: int) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][at] = value

    return change


def cut(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "offset behind the end": put("offsets", -1, 1 << 40),
    "negative offset": put("offsets", 0, -512),
    "offset in a header": put("offsets", 0, 0),
    "offset between blocks": put("offsets", 1, 1537),
    "offset at the edge": put("offsets", -1, (1 << 63) - 512),
    "overlap": put("offsets", 1, 512),
    "negative size": put("sizes", 0, -1),
    "size behind the end": put("sizes", -1, 1 << 40),
    "size at the edge": put("sizes", 0, (1 << 63) - 1),
    "size over the next member": put("sizes", 0, 5000),
    "rows backwards": put("first", 1, 0),
    "rows beyond": put("first", -1, 1000),
    "first row": put("first", 0, 1),
    "suffix beyond": put("suffix", 0, 99),
    "negative suffix": put("suffix", 0, -1),
    "suffix twice": put("suffix", 1, 0),
    "key beyond": put("key_ends", -1, 10_000),
    "key backwards": put("key_ends", 0, -5),
    "empty key": put("key_ends", 1, 0),
    "key of other bytes": put("keys", 0, 0xFF),
    "label below": put("labels", 0, -2),
    "fewer labels": cut("labels"),
    "fewer sizes": cut("sizes"),
    "fewer checks": cut("checks"),
    "fewer suffixes": cut("suffix"),
    "fewer rows": cut("first"),
    "without sizes": lambda arrays: arrays.pop("sizes"),
    "nothing": lambda arrays: arrays.clear(),
    "other type": lambda arrays: arrays.update(sizes=arrays["sizes"].astype(np.int32)),
    "two axes": lambda arrays: arrays.update(sizes=arrays["sizes"][None]),
    "no JSON": put("about", 0, 0),
    "list for JSON": lambda arrays: arrays.update(about=np.frombuffer(b"[1]", np.uint8)),
    "deep JSON": lambda arrays: arrays.update(about=np.full(200_000, ord("["), np.uint8)),
    "format": lambda arrays: about(arrays, format=2),
    "bytes": lambda arrays: about(arrays, bytes=1),
    "sha256": lambda arrays: about(arrays, sha256="0" * 64),
    "suffixes": lambda arrays: about(arrays, suffixes="cls"),
    "number as suffix": lambda arrays: about(arrays, suffixes=[1, 2, 3]),
    "reserved suffix": lambda arrays: about(arrays, suffixes=["__key__", "a", "b"]),
    "broken suffix": lambda arrays: about(arrays, suffixes=["\ud800", "a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(served: Dataset, lie: str) -> None:
    place = place_of(served)
    good = index_of(place).read_bytes()
    arrays = dict(load(good))
    LIES[lie](arrays)
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    with pytest.raises(ValueError):
        parse_index(place.name, data, place.size, place.sha256)
    index_of(place).write_bytes(data)
    try:
        assert list(read_shard(place)) == list(read_shard(place.path))
    finally:
        index_of(place).write_bytes(good)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_give_an_index_inside_the_shard_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed" / "a.tar"
    if not path.exists():
        path.parent.mkdir()
        with ShardWriter(path) as writer:
            for n in range(3):
                writer.add(f"k{n}", {"a.txt": b"x" * n * 300, "cls": b"%d" % n})
    content = bytearray(Path(f"{path}.index").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "cut", "fill", "insert"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "cut":
                content = content[: max(1, at)]
            case "fill":
                content[at : at + 8] = data.draw(st.sampled_from([b"\xff", b"\0"])) * 8
            case _:
                content[at:at] = data.draw(st.binary(max_size=9))
    size = path.stat().st_size
    sha256 = json.loads(load(Path(f"{path}.index").read_bytes())["about"].tobytes())["sha256"]
    try:
        found = parse_index("a.tar", bytes(content), size, sha256)
    except ValueError:
        return
    assert (found.offsets >= 512).all()
    assert (found.offsets + found.sizes <= size).all()
    assert len(found.first) == len(found.keys) + 1
    repacked = pack_index(replace(found, labels=None), sha256, found.labels)
    assert equal(parse_index("a.tar", repacked, size, sha256), found)


def test_an_index_that_is_a_folder_or_huge_is_no_index(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = place_of(tiny)
    monkeypatch.setattr("outmodal.data.store_local.LARGEST_INDEX", 10)
    with caplog.at_level(logging.WARNING):
        assert scan_shard(place).labels is None
    index_of(place).unlink()
    index_of(place).mkdir()
    _scan.cache_clear()
    assert scan_shard(place).labels is None
