"""Folders as places of shards."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from outmodal.data.store import ShardPlace
from outmodal.data.store_local import LocalShard, LocalStore, as_place
from outmodal.data.store_remote import RemoteShard, hide_credentials, is_address


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(range(100)))
    return path


def test_a_file_is_read_by_position(path: Path) -> None:
    with LocalShard(path).open() as file:
        assert (file.name, file.size) == ("a.tar", 100)
        assert file.pread(3, 5) == bytes([5, 6, 7])
        assert file.pread(10, 95) == bytes(range(95, 100))
        assert file.pread(10, 200) == b""
    file.close()


def test_short_reads_of_the_kernel_are_put_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, at: plain(handle, min(size, 7), at))
    with LocalShard(path).open() as file:
        assert file.pread(60, 10) == bytes(range(10, 70))
        assert file.pread(60, 90) == bytes(range(90, 100))


def test_the_version_tells_a_change(path: Path) -> None:
    place = LocalShard(path)
    with place.open() as file:
        before = file.version
        assert place.stamp() == (100, before)
        os.utime(path, (1, 1))
        assert file.version != before
        assert place.stamp() == (100, file.version)


def test_a_store_gives_files_and_shards(path: Path) -> None:
    store = LocalStore(path.parent)
    assert (store.where, store.folder) == (str(path.parent), path.parent)
    assert store.read_bytes("a.tar") == path.read_bytes()
    assert store.size("a.tar") == 100
    with store.open("a.tar") as file:
        assert file.pread(1, 1) == b"\x01"
    with pytest.raises(FileNotFoundError):
        store.size("b.tar")
    shard = store.shard("a.tar", 100, "0" * 64)
    assert shard.expected() == (100, "0" * 64)
    assert shard.index_bytes() is None


def test_places_are_values(path: Path) -> None:
    assert as_place(path) == LocalShard(path)
    remote = RemoteShard("http://host/a.tar", 1, "0")
    for place in (LocalShard(path), remote):
        assert isinstance(place, ShardPlace)
        assert as_place(place) is place
        assert pickle.loads(pickle.dumps(place)) == place  # noqa: S301
        assert hash(place) == hash(pickle.loads(pickle.dumps(place)))  # noqa: S301
        assert place.name == "a.tar"
    assert (LocalShard(path).far, remote.far) == (False, True)


@pytest.mark.parametrize("text", ["http://h/a", "s3://b/a", "file:///a", "pipe:cat {}"])
def test_addresses_are_told_from_paths(text: str) -> None:
    assert is_address(text)
    assert not is_address(text.replace("://", "/").replace("pipe:", ""))


def test_credentials_are_not_shown() -> None:
    assert hide_credentials("https://me:word@host:81/a?key=word#word") == "https://host:81/a"
