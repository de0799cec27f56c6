"""Writing, indexing and reading shards, whole and damaged."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.data.shards import (
    ShardDamage,
    ShardWriter,
    read_members,
    read_shard,
    scan_shard,
)
from outmodal.errors import UserError

Samples = Sequence[tuple[str, Mapping[str, bytes]]]
BLOCK = 512


def some(count: int, size: int = 700) -> list[tuple[str, dict[str, bytes]]]:
    """Samples with members of different sizes, an empty one among them."""
    return [
        (f"{n:04d}", {"a.npy": bytes([n % 256]) * (size + n), "b.txt": b"", "cls": b"%d" % n})
        for n in range(count)
    ]


def write(path: Path, samples: Samples) -> Path:
    with ShardWriter(path) as shard:
        for key, members in samples:
            shard.add(key, members)
    return path


def foreign(path: Path, entries: Sequence[tuple[tarfile.TarInfo, bytes]], **options: Any) -> Path:
    """A tar as some other tool would write it."""
    with tarfile.open(path, "w", **options) as tar:
        for info, data in entries:
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def member(name: str, data: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


def read(path: Path, **asked: Any) -> list[tuple[int, str, dict[str, bytes]]]:
    return list(read_shard(path, **asked))


def until_damage(path: Path, **asked: Any) -> tuple[list[str], ShardDamage]:
    """Keys that come before ShardDamage, and the damage."""
    keys: list[str] = []

    def consume() -> None:
        for _, key, _ in read_shard(path, **asked):
            keys.append(key)

    with pytest.raises(ShardDamage) as caught:
        consume()
    return keys, caught.value


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write(tmp_path / "train-000000.tar", some(10))


def test_reading_gives_what_was_written(shard: Path) -> None:
    assert read(shard) == [(n, key, dict(m)) for n, (key, m) in enumerate(some(10))]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.tar", some(5)).read_bytes()
    os.utime(tmp_path)
    reordered = [(key, dict(reversed(list(m.items())))) for key, m in some(5)]
    assert write(tmp_path / "b.tar", reordered).read_bytes() == first
    assert len(first) % tarfile.RECORDSIZE == 0


def test_writer_tells_what_the_manifest_needs(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as writer:
        for key, members in some(4):
            writer.add(key, members)
        with pytest.raises(RuntimeError, match="not complete"):
            _ = writer.info
    data = (tmp_path / "a.tar").read_bytes()
    info = writer.info
    assert (info.file, info.samples, info.bytes) == ("a.tar", 4, len(data))
    assert info.sha256 == hashlib.sha256(data).hexdigest()


def test_headers_hold_nothing_of_the_machine(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert info.mode == 0o644
            assert not info.pax_headers


def test_failed_writing_leaves_nothing_and_keeps_the_old(shard: Path) -> None:
    before = shard.read_bytes()
    with pytest.raises(UserError):
        write(shard, [("k", {"a.txt": b"new"}), ("", {})])
    assert shard.read_bytes() == before
    assert sorted(os.listdir(shard.parent)) == [shard.name, f"{shard.name}.index"]


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".a.tar.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.tar", some(2000))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "key", ["", "a.b", "/a", "../a", "a/../b", "a/", "x/.b", "a\n", "\udc80", "__m__"]
)
def test_keys_that_would_not_come_back_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match="key"), ShardWriter(tmp_path / "a.tar") as writer:
        writer.add(key, {"cls": b"1"})


@pytest.mark.parametrize(
    "suffix", ["", ".png", "Image.png", "a.b.c", "__key__", "a b.txt", "a/b.txt"]
)
def test_suffixes_that_would_not_come_back_are_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match="member"), ShardWriter(tmp_path / "a.tar") as writer:
        writer.add("k", {suffix: b"1"})


def test_repeated_key_no_members_and_no_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'k' is used twice"):
        write(tmp_path / "a.tar", [("k", {"cls": b"1"})] * 2)
    with pytest.raises(UserError, match="no members"):
        write(tmp_path / "a.tar", [("k", {})])
    with pytest.raises(UserError, match="at least one"):
        write(tmp_path / "a.tar", [])


def test_plain_webdataset_reads_our_shards(shard: Path) -> None:
    found = list(webdataset.WebDataset([str(shard)], shardshuffle=False))
    assert [(s["__key__"], s["a.npy"], s["cls"]) for s in found] == [
        (key, m["a.npy"], m["cls"]) for key, m in some(10)
    ]


keys = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="./"), min_size=1, max_size=120
).filter(lambda key: not key.startswith("__"))
suffixes = st.sampled_from(["cls", "json", "image.png", "target.npy", "b-c_d.npy"])


@settings(max_examples=25, deadline=None)
@given(
    samples=st.dictionaries(
        keys,
        st.dictionaries(suffixes, st.binary(max_size=1500), min_size=1),
        min_size=1,
        max_size=6,
    )
)
def test_any_samples_come_back(tmp_path_factory: pytest.TempPathFactory, samples: Any) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.tar", list(samples.items()))
    assert {key: members for _, key, members in read(path)} == samples
    plain = webdataset.WebDataset([str(path)], shardshuffle=False)
    assert [s["__key__"] for s in plain] == list(samples)


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(0, 10),
    stop=st.none() | st.integers(0, 10),
    select=st.none() | st.lists(st.integers(0, 9)),
)
def test_any_part_is_what_slicing_gives(
    tmp_path_factory: pytest.TempPathFactory, start: int, stop: int | None, select: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "part.tar"
    if not path.exists():
        write(path, some(10))
    wanted = range(start, 10 if stop is None else stop)
    expected = [p for p in wanted if select is None or p in select]
    assert [p for p, _, _ in read(path, start=start, stop=stop, select=select)] == expected


def test_a_sparse_selection_reads_only_its_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar", some(100, size=20_000))
    scan_shard(path)
    read_bytes = 0
    plain = os.pread

    def counting(handle: int, size: int, offset: int) -> bytes:
        nonlocal read_bytes
        got = plain(handle, size, offset)
        read_bytes += len(got)
        return got

    monkeypatch.setattr(os, "pread", counting)
    assert [p for p, _, _ in read(path, select=range(0, 100, 10))] == list(range(0, 100, 10))
    assert read_bytes <= 10 * (21_000 + 6 * BLOCK)
    read_bytes = 0
    assert len(read(path, start=40, stop=50)) == 10
    assert read_bytes <= 10 * (21_000 + 6 * BLOCK)


def test_asking_for_more_than_there_is_is_damage(shard: Path) -> None:
    found, damage = until_damage(shard, stop=12)
    assert len(found) == 10
    assert (damage.shard, damage.read_ok) == (shard.name, 10)
    assert "10 whole samples" in damage.detail
    assert until_damage(shard, select=[3, 11])[1].read_ok == 1


def test_damage_crosses_process_borders() -> None:
    damage = ShardDamage("a.tar", "cut", 3)
    again = pickle.loads(pickle.dumps(damage))  # noqa: S301
    assert (again.shard, again.detail, again.read_ok) == ("a.tar", "cut", 3)
    assert "a.tar: cut (3 samples" in str(again)


def header_offset(path: Path, position: int, number: int = 0) -> int:
    """Offset of a member's header."""
    return scan_shard(path).members(position)[number].offset - BLOCK


def replaced(path: Path, data: bytes) -> Path:
    """Another file with `data`, so that no cache knows it."""
    other = path.with_name("damaged.tar")
    other.write_bytes(data)
    return other


def test_cut_inside_a_member(shard: Path) -> None:
    cut = header_offset(shard, 4) + BLOCK + 100
    found, damage = until_damage(replaced(shard, shard.read_bytes()[:cut]))
    assert found == ["0000", "0001", "0002", "0003"]
    assert "damaged.tar" in str(damage)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_cut_inside_a_header_loses_no_sample_in_silence(shard: Path, number: int) -> None:
    cut = header_offset(shard, 4, number) + 200
    path = replaced(shard, shard.read_bytes()[:cut])
    found, damage = until_damage(path)
    # Cut in the first header of sample 4, sample 3 may have lost members: it is not trusted.
    assert found == [f"{n:04d}" for n in range(3 if number == 0 else 4)]
    assert damage.read_ok == len(found)
    assert until_damage(path, stop=10)[0] == found


def test_cut_between_members(shard: Path) -> None:
    cut = header_offset(shard, 4, 1)
    found, damage = until_damage(replaced(shard, shard.read_bytes()[:cut]))
    assert found == ["0000", "0001", "0002", "0003"]
    assert "no end mark" in damage.detail


@pytest.mark.parametrize("length", [BLOCK, 2 * BLOCK, 5000])
def test_zeros_in_the_middle(shard: Path, length: int) -> None:
    data = bytearray(shard.read_bytes())
    at = header_offset(shard, 4, 1)
    data[at : at + length] = bytes(length)
    found, damage = until_damage(replaced(shard, bytes(data)))
    assert found == ["0000", "0001", "0002", "0003"]
    assert f"at byte {at}" in damage.detail


def test_bad_header_in_the_middle(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    at = header_offset(shard, 4, 1)
    data[at : at + 8] = b"\xff" * 8
    found, damage = until_damage(replaced(shard, bytes(data)))
    assert found == ["0000", "0001", "0002", "0003"]
    assert "bad header" in damage.detail


@pytest.mark.parametrize(
    "data", [b"", b"no tar at all", b"\xff" * 4096, b"\x1f\x8b\x08" + bytes(900)]
)
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    assert until_damage(tmp_path / "a.tar")[1].read_ok == 0


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be opened" in until_damage(tmp_path / "none.tar")[1].detail


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", some(10, size=300_000))
    reading = read_shard(shard)
    next(reading)
    data = bytearray(shard.read_bytes())
    at = header_offset(shard, 8)
    data[at : at + 4000] = bytes(4000)
    with shard.open("r+b") as file:
        file.write(data)
    with pytest.raises(ShardDamage):
        list(reading)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_passes_in_silence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is broken: what is read is right, or damage is raised."""
    path = tmp_path_factory.mktemp("fuzz") / "a.tar"
    write(path, some(5, size=30))
    content = bytearray(path.read_bytes())
    used = int(scan_shard(path).ends[-1])
    at = data.draw(st.integers(0, used - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        length = data.draw(st.integers(1, 1024))
        content[at : at + length] = data.draw(st.sampled_from([b"\0", b"\xff", b"7"])) * length
    broken = replaced(path, bytes(content))
    found: list[Any] = []
    try:
        for item in read_shard(broken, stop=5):
            found.append(item)
    except ShardDamage as damage:
        told = damage.read_ok
    else:
        told = 5
    assert told == len(found)
    assert [position for position, _, _ in found] == list(range(len(found)))


def test_second_member_of_a_name_leaves_the_shard_readable(tmp_path: Path) -> None:
    names = ["a.x.txt", "b.x.txt", "b.X.txt", "b.cls", "c.x.txt"]
    path = foreign(tmp_path / "a.tar", [member(name) for name in names])
    assert [(key, sorted(m)) for _, key, m in read(path)] == [
        ("a", ["x.txt"]), ("b", ["cls", "x.txt", "x.txt.2"]), ("c", ["x.txt"]),
    ]  # fmt: skip


def test_names_are_only_keys(tmp_path: Path) -> None:
    """Absolute names, '..', links, devices and folders touch nothing, and links hold nothing."""
    link, device = tarfile.TarInfo("l.a.txt"), tarfile.TarInfo("d.a.txt")
    folder = tarfile.TarInfo("f")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type, folder.type = tarfile.CHRTYPE, tarfile.DIRTYPE
    hard = tarfile.TarInfo("h.a.txt")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../x.a.txt"
    (tmp_path / "in").mkdir()
    path = foreign(
        tmp_path / "in" / "a.tar",
        [(folder, b""), member("/abs/x.a.txt", b"1"), (link, b""), member("../../y.a.txt", b"2"),
         (device, b""), (hard, b""), member("__meta__/z.a.txt"), member("nodot"),
         member("dir/w.a.txt", b"3")],
    )  # fmt: skip
    expected = [("/abs/x", b"1"), ("../../y", b"2"), ("dir/w", b"3")]
    assert [(key, m["a.txt"]) for _, key, m in read(path)] == expected
    assert read(path, select=[1])[0][1] == "../../y"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "in"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_format(tmp_path: Path, form: int) -> None:
    names = [f"{'d' * 60}/{n}{'k' * 60}" for n in range(3)]
    path = foreign(
        tmp_path / "a.tar", [member(f"{n}.a.txt", n.encode()) for n in names], format=form
    )
    assert [key for _, key, _ in read(path)] == names
    assert read(path, select=[2])[0][2] == {"a.txt": names[2].encode()}


def test_tar_that_runs_backwards_ends(tmp_path: Path) -> None:
    """A negative member size sends a naive scan in circles."""
    path = write(tmp_path / "a.tar", some(3))
    data = bytearray(path.read_bytes())
    at = header_offset(path, 1, 2)
    data[at + 124 : at + 136] = b"\xff" * 10 + b"\xfc\x00"
    data[at + 148 : at + 156] = b" " * 8
    total = sum(data[at : at + BLOCK])
    data[at + 148 : at + 156] = b"%06o\0 " % total
    assert until_damage(replaced(path, bytes(data)))[0] == ["0000"]


def test_reserved_and_undecodable_names_are_damage(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.tar", [member("a.x.txt"), member("b.__key__"), member("c.x.txt")])
    assert "reserved" in until_damage(path)[1].detail
    path = foreign(tmp_path / "b.tar", [member("a.x.txt"), member("\udcff.x.txt")])
    assert "UTF-8" in until_damage(path)[1].detail


def test_index_notices_a_new_file_under_an_old_name(shard: Path) -> None:
    assert len(scan_shard(shard)) == 10
    assert scan_shard(shard) is scan_shard(shard)
    write(shard, some(7))
    later = time.time_ns() + 10**9
    os.utime(shard, ns=(later, later))
    assert len(scan_shard(shard)) == 7


def test_read_members_gives_one_suffix_and_cuts_large_ones(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar", [("a", {"cls": b"1", "x.txt": b"y" * 99}), ("b", {"x.txt": b"z"})]
    )
    index = scan_shard(path)
    assert list(read_members(path, index, "cls", 8)) == [(0, b"1"), (1, None)]
    assert list(read_members(path, index, "x.txt", 8)) == [(0, b"y" * 9), (1, b"z")]
