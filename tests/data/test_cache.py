"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from outmodal.data import cache
from outmodal.data.cache import write_atomic


def test_threads_that_write_one_file_leave_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are in the middle of their files at once, as two machines may be."""
    path, both, plain = tmp_path / "file", threading.Barrier(2, timeout=120), os.fsync

    def slow(handle: int) -> None:
        if path.parent.samefile(f"/proc/self/fd/{handle}"):
            return  # the folder
        both.wait()
        plain(handle)

    monkeypatch.setattr(cache.os, "fsync", slow)
    failures: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            write_atomic(path, content)
        except OSError as error:
            failures.append(error)

    contents = [b"a" * 70_000, b"b" * 20_000]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
