"""The data set inside the package: unpacked once, verified always, safe among many processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest

from outmodal.data import embedded
from outmodal.data.build.embedded import pack
from outmodal.data.cache import cache_dir
from outmodal.data.embedded import ARCHIVE, embedded_dataset
from outmodal.data.labels import read_labels
from outmodal.data.manifest import EMBEDDED, open_dataset
from outmodal.errors import UserError
from tests.data.tiny import make_tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for every test."""
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    return cache_dir()


@pytest.fixture(scope="module")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pack(make_tiny(tmp_path_factory.mktemp("tiny") / "dataset"))


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | None], None]:
    """Put another archive into the package, or none."""

    def put(archive: bytes | None) -> None:
        files = tmp_path / "package" / "embedded_files"
        files.mkdir(parents=True, exist_ok=True)
        if archive is not None:
            (files / ARCHIVE).write_bytes(archive)
        package = SimpleNamespace(files=lambda _: files.parent)
        monkeypatch.setattr(embedded, "resources", package)

    return put


def test_the_shipped_data_set() -> None:
    dataset = open_dataset(EMBEDDED)
    manifest = dataset.manifest
    assert manifest.name == EMBEDDED
    assert len(manifest.classes) == 10
    assert sorted(manifest.modalities) == ["image", "speech", "text"]
    sizes = {name: (info.samples, len(info.shards)) for name, info in manifest.splits.items()}
    assert sizes == {"train": (2000, 16), "test": (500, 4)}
    assert set(read_labels(dataset, "test").tolist()) == set(range(10))


def test_the_archive_is_small_and_has_its_notice() -> None:
    files = resources.files("outmodal.data") / "embedded_files"
    assert len((files / ARCHIVE).read_bytes()) <= 6_000_000
    notice = (files / "NOTICE").read_text(encoding="utf-8")
    for part in ("Zalando SE", "MIT License", "eSpeak NG"):
        assert part in notice


def test_it_is_unpacked_once(ship: Callable[[bytes | None], None], tiny_archive: bytes) -> None:
    ship(tiny_archive)
    first = embedded_dataset()
    before = {path: path.stat().st_mtime_ns for path in first.root.iterdir()}
    assert embedded_dataset() == first
    assert {path: path.stat().st_mtime_ns for path in first.root.iterdir()} == before
    assert os.listdir(first.root.parent) == [first.root.name]


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed", "manifest", "empty"])
def test_a_damaged_cache_is_repaired(
    ship: Callable[[bytes | None], None], tiny_archive: bytes, damage: str
) -> None:
    ship(tiny_archive)
    root = embedded_dataset().root
    good = {path.name: path.read_bytes() for path in root.iterdir()}
    shard = root / "train-000001.tar"
    if damage == "flipped":
        shard.write_bytes(b"\xff" + good[shard.name][1:])
    elif damage == "cut":
        shard.write_bytes(good[shard.name][:100])
    elif damage == "removed":
        shard.unlink()
    elif damage == "manifest":
        (root / "dataset.json").write_text("{}")
    else:
        for path in root.iterdir():
            path.unlink()
    embedded_dataset()
    assert {path.name: path.read_bytes() for path in root.iterdir()} == good
    assert os.listdir(root.parent) == [root.name]


def test_who_comes_second_discards_its_copy(
    ship: Callable[[bytes | None], None], tiny_archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tiny_archive)
    rename = os.rename
    winners = []

    def another_first(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        winners.append(embedded_dataset().root.stat().st_ino)
        rename(source, target)

    monkeypatch.setattr(os, "rename", another_first)
    root = embedded_dataset().root
    assert [root.stat().st_ino] == winners
    assert os.listdir(root.parent) == [root.name]


def test_many_processes_may_ask_at_once(cache: Path) -> None:
    script = (
        "from outmodal.data.embedded import embedded_dataset\n"
        "input()\n"
        "print(embedded_dataset().root)\n"
    )
    command = [sys.executable, "-c", script]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    roots = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert len(roots) == 1
    assert os.listdir(cache / "datasets") == [Path(roots.pop()).name]


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, ship: Callable[[bytes | None], None], tiny_archive: bytes
) -> None:
    ship(tiny_archive)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot unpack .*cache.*set OUTMODAL_CACHE"):
        embedded_dataset()


def test_an_installation_without_the_archive_is_named(
    ship: Callable[[bytes | None], None],
) -> None:
    ship(None)
    with pytest.raises(UserError, match=rf"{ARCHIVE} is missing from this installation"):
        embedded_dataset()


def repack(archive: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """Change the members of an archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    change(members)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.pop("test-000000.tar"),
        lambda members: members.update({"train-000000.tar": b"other"}),
        lambda members: members.update({"dataset.json": b"{}"}),
        lambda members: members.update({"dataset.json": b"["}),
        lambda members: members.clear(),
    ],
)
def test_an_archive_that_is_not_what_its_manifest_says_is_refused(
    ship: Callable[[bytes | None], None],
    cache: Path,
    tiny_archive: bytes,
    change: Callable[[dict[str, bytes]], object],
) -> None:
    ship(repack(tiny_archive, change))
    with pytest.raises(UserError, match=rf"{ARCHIVE} is damaged .*install outmodal again"):
        embedded_dataset()
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08" + bytes(40)])
def test_an_unreadable_archive_is_refused(
    ship: Callable[[bytes | None], None], content: bytes
) -> None:
    ship(content)
    with pytest.raises(UserError, match=f"{ARCHIVE} is damaged"):
        embedded_dataset()


def test_a_cut_archive_is_refused(
    ship: Callable[[bytes | None], None], tiny_archive: bytes
) -> None:
    ship(tiny_archive[: len(tiny_archive) // 2])
    with pytest.raises(UserError, match=f"{ARCHIVE} is damaged"):
        embedded_dataset()


def test_members_that_the_manifest_does_not_name_are_never_written(
    ship: Callable[[bytes | None], None], cache: Path, tiny_archive: bytes
) -> None:
    extra = {"../evil.txt": b"x", "/tmp/evil.txt": b"x", "extra.tar": b"x"}
    ship(repack(tiny_archive, lambda members: members.update(extra)))
    root = embedded_dataset().root
    assert not list(cache.rglob("*evil*"))
    assert not (root / "extra.tar").exists()
