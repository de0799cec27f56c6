"""The cache of whole shards: one download for all processes, a limit that holds, no leftovers."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmodal.data import disk_cache, store_remote
from outmodal.data.disk_cache import DiskCache, Download
from outmodal.data.manifest import Dataset, ShardInfo, open_dataset
from outmodal.data.shard_index import _scan
from outmodal.data.shards import ShardDamage, read_shard
from outmodal.data.store import StoreError
from outmodal.data.store_config import RemoteConfig
from tests.data.servers import Faults, faulty
from tests.data.tiny import make_tiny

SHARDS = 8
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    _scan.cache_clear()
    store_remote._tags.clear()
    disk_cache._warned.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("served") / "set", 160, SHARDS, ("pose", "force"))


@pytest.fixture
def server(local: Dataset) -> Iterator[tuple[str, Faults]]:
    with faulty(local.root.parent) as (address, faults):
        yield f"{address}/set", faults


def config(folder: Path, **changes: Any) -> RemoteConfig:
    fields = {"retries": 2, "pause": 0.01, "timeout": 120.0, **changes}
    return RemoteConfig(cache=str(folder / "cache"), **fields)


def shards(dataset: Dataset) -> tuple[ShardInfo, ...]:
    return dataset.split("train").shards


def read(dataset: Dataset, number: int) -> list[Any]:
    return list(read_shard(dataset.shard(shards(dataset)[number])))


def on_disk(folder: Path) -> int:
    """Bytes of all that lies in the cache at one moment.

    The folder's lock keeps others from making and removing files; one that gets its name
    meanwhile is met twice, and counted once.
    """
    sizes = {}
    if not (folder / "cache" / "lock").exists():
        return 0
    with open(folder / "cache" / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            for path in (folder / "cache").rglob("*"):
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                if path.suffix == ".tar" or path.parent.name == "coming":
                    sizes[status.st_ino] = status.st_size
        finally:  # closing is not enough: a child that was forked meanwhile has the file open too
            fcntl.flock(lock, fcntl.LOCK_UN)
    return sum(sizes.values())


def kept(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "cache" / "shards").iterdir()}


def coming(folder: Path) -> list[Path]:
    return list((folder / "cache" / "coming").iterdir())


def test_a_shard_is_fetched_once(server: Any, local: Dataset, tmp_path: Path) -> None:
    address, faults = server
    dataset = open_dataset(address, remote=config(tmp_path))
    faults.asked.clear()
    for _ in range(3):
        assert read(dataset, 0) == read(local, 0)
    assert faults.shards() == [None]
    assert kept(tmp_path) == {shards(local)[0].sha256}
    assert coming(tmp_path) == []
    (path,) = (tmp_path / "cache" / "shards").iterdir()
    assert path.read_bytes() == local.shard_path(shards(local)[0]).read_bytes()


def test_a_shard_that_was_cut_short_on_the_disk_is_fetched_again(
    server: Any, local: Dataset, tmp_path: Path
) -> None:
    dataset = open_dataset(server[0], remote=config(tmp_path))
    read(dataset, 0)
    (path,) = (tmp_path / "cache" / "shards").iterdir()
    os.truncate(path, 1000)
    assert read(dataset, 0) == read(local, 0)


def test_processes_that_want_the_same_shard_share_one_download(
    server: Any, local: Dataset, tmp_path: Path
) -> None:
    address, faults = server
    dataset = open_dataset(address, remote=config(tmp_path))
    faults.asked.clear()
    faults.pause = 0.5
    children = [FORK.Process(target=_reads_all, args=(dataset, local, [3])) for _ in range(4)]
    finish(children)
    assert faults.shards() == [None]


def _reads_all(dataset: Dataset, local: Dataset, numbers: list[int]) -> None:
    for number in numbers:
        assert read(dataset, number) == read(local, number)


def finish(children: list[Any]) -> None:
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0] * len(children)


def limit_of(local: Dataset, count: float) -> float:
    """A limit in GB that holds `count` shards."""
    return max(info.bytes for info in shards(local)) * count / 1e9


def test_the_least_recently_used_goes_first(server: Any, local: Dataset, tmp_path: Path) -> None:
    dataset = open_dataset(server[0], remote=config(tmp_path, cache_gb=limit_of(local, 2.2)))
    names = [info.sha256 for info in shards(local)]
    read(dataset, 0)
    read(dataset, 1)
    folder = tmp_path / "cache" / "shards"
    os.utime(folder / f"{names[0]}.tar", (1000, 1000))
    os.utime(folder / f"{names[1]}.tar", (2000, 2000))
    read(dataset, 0)  # used again
    read(dataset, 2)
    assert kept(tmp_path) == {names[0], names[2]}


def test_a_shard_that_is_removed_stays_readable_where_it_is_open(
    server: Any, local: Dataset, tmp_path: Path
) -> None:
    dataset = open_dataset(server[0], remote=config(tmp_path, cache_gb=limit_of(local, 1.2)))
    with dataset.shard(shards(local)[0]).open() as file:
        assert read(dataset, 1) == read(local, 1)
        assert kept(tmp_path) == {shards(local)[1].sha256}
        expected = local.shard_path(shards(local)[0]).read_bytes()
        assert file.pread(len(expected), 0) == expected


def test_the_limit_holds_while_many_write(server: Any, local: Dataset, tmp_path: Path) -> None:
    limit = limit_of(local, 3.5)
    dataset = open_dataset(server[0], remote=config(tmp_path, cache_gb=limit))
    orders = [random.Random(n).choices(range(SHARDS), k=15) for n in range(4)]
    children = [FORK.Process(target=_reads_all, args=(dataset, local, o)) for o in orders]
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, on_disk(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        finish(children)
    finally:
        done.set()
        watcher.join()
    most = max(most, on_disk(tmp_path))  # the watcher may have had no turn
    assert 0 < most <= limit * 1e9
    cache = DiskCache(tmp_path / "cache", int(limit * 1e9))
    assert cache.usage() == on_disk(tmp_path) <= limit * 1e9
    assert coming(tmp_path) == []


def test_a_killed_download_leaves_nothing_that_matters(
    server: Any, local: Dataset, tmp_path: Path
) -> None:
    address, faults = server
    dataset = open_dataset(address, remote=config(tmp_path, cache_gb=limit_of(local, 1.5)))
    faults.pause = 600.0
    left: list[Path] = []
    for _ in range(3):
        child = FORK.Process(target=_reads_all, args=(dataset, local, [0]))
        child.start()
        end = time.monotonic() + 120
        while not set(_coming(tmp_path)) - set(left):  # an earlier one left its own
            assert time.monotonic() < end
            time.sleep(0.01)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        left = coming(tmp_path)
        assert len(left) == 1  # one at most: the next removes it
    faults.pause = 0.0
    assert read(dataset, 1) == read(local, 1)
    assert coming(tmp_path) == []
    assert read(dataset, 0) == read(local, 0)


def _coming(folder: Path) -> list[Path]:
    return coming(folder) if (folder / "cache" / "coming").is_dir() else []


@pytest.mark.long
def test_downloads_killed_at_any_moment(server: Any, local: Dataset, tmp_path: Path) -> None:
    dataset = open_dataset(server[0], remote=config(tmp_path, cache_gb=limit_of(local, 2.5)))
    chance = random.Random(0)
    for _ in range(40):
        order = chance.choices(range(SHARDS), k=8)
        children = [FORK.Process(target=_reads_all, args=(dataset, local, order)) for _ in "ab"]
        for child in children:
            child.start()
        time.sleep(chance.uniform(0, 0.15))
        for child in children:
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
        assert on_disk(tmp_path) <= limit_of(local, 2.5) * 1e9
    _reads_all(dataset, local, list(range(SHARDS)))
    assert coming(tmp_path) == []


def test_a_cut_download_goes_on_at_the_byte(server: Any, local: Dataset, tmp_path: Path) -> None:
    address, faults = server
    dataset = open_dataset(address, remote=config(tmp_path))
    faults.asked.clear()
    faults.cut, faults.cuts = 5000, 2
    assert read(dataset, 0) == read(local, 0)
    assert faults.shards() == [None, "bytes=5000-", "bytes=10000-"]


def test_a_server_without_ranges_begins_again(server: Any, local: Dataset, tmp_path: Path) -> None:
    address, faults = server
    faults.ranges = False
    dataset = open_dataset(address, remote=config(tmp_path))
    faults.asked.clear()
    faults.cut, faults.cuts = 5000, 1
    assert read(dataset, 0) == read(local, 0)
    assert faults.shards() == [None, "bytes=5000-"]


def test_a_wrong_checksum_is_fetched_again_once(
    server: Any, local: Dataset, tmp_path: Path
) -> None:
    address, faults = server
    dataset = open_dataset(address, remote=config(tmp_path))
    info = shards(local)[0]
    wrong = bytearray(local.shard_path(info).read_bytes())
    wrong[600] ^= 1
    faults.replace["/set/train-000000.tar"] = bytes(wrong)
    faults.asked.clear()
    with pytest.raises(ShardDamage) as caught:
        read(dataset, 0)
    assert faults.shards() == [None, None]
    assert info.sha256 in str(caught.value)
    assert str(caught.value).count("sha256") == 1
    assert "train-000000.tar" in str(caught.value)
    assert coming(tmp_path) == []
    assert kept(tmp_path) == set()


def test_a_shard_cut_short_on_the_server(server: Any, local: Dataset, tmp_path: Path) -> None:
    address, faults = server
    dataset = open_dataset(address, remote=config(tmp_path))
    whole = local.shard_path(shards(local)[0]).read_bytes()
    faults.replace["/set/train-000000.tar"] = whole[:-1024]
    with pytest.raises(ShardDamage, match=f"has {len(whole) - 1024} bytes, the manifest says"):
        read(dataset, 0)
    assert coming(tmp_path) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_reads_from_the_network_with_one_warning(
    server: Any, local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, call: str,
) -> None:  # fmt: skip
    dataset = open_dataset(server[0], remote=config(tmp_path))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_cache.os, call, full)
    for number in range(3):
        assert read(dataset, number) == read(local, number)
    assert coming(tmp_path) == []
    assert caplog.text.count("No space left on device") == 1


def test_a_shard_above_the_limit_is_read_from_the_network(
    server: Any, local: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(server[0], remote=config(tmp_path, cache_gb=limit_of(local, 0.5)))
    assert read(dataset, 0) == read(local, 0)
    assert "larger than the limit" in caplog.text
    assert on_disk(tmp_path) == 0


def test_a_folder_that_cannot_be_made_is_named(server: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    dataset = open_dataset(server[0], remote=config(tmp_path))
    with pytest.raises(StoreError, match=r"data\.remote\.cache .*Not a directory"):
        read(dataset, 0)


def test_who_waits_for_a_process_that_does_not_get_on_reads_from_the_network(
    server: Any, local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(disk_cache, "_patience", lambda _: 0.5)
    dataset = open_dataset(server[0], remote=config(tmp_path))
    locks = tmp_path / "cache" / "locks"
    locks.mkdir(parents=True)
    with open(locks / shards(local)[0].sha256[:2], "wb") as stuck:
        fcntl.flock(stuck, fcntl.LOCK_EX)
        assert read(dataset, 0) == read(local, 0)
    assert "is read from the network" in caplog.text


def test_threads_share_a_download(server: Any, local: Dataset, tmp_path: Path) -> None:
    address, faults = server
    info = shards(local)[0]
    faults.asked.clear()
    faults.pause = 0.2
    cache = DiskCache(tmp_path / "cache", 10**9)
    wanted = Download(f"{address}/{info.file}", info.bytes, info.sha256, config(tmp_path))
    handles: list[int | None] = []
    threads = [threading.Thread(target=lambda: handles.append(cache.open(wanted))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults.shards() == [None]
    found = [handle for handle in handles if handle is not None]
    assert len(set(found)) == 3
    for handle in found:
        assert os.pread(handle, info.bytes, 0) == local.shard_path(info).read_bytes()
        os.close(handle)
