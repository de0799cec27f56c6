"""The build frame: resumable, byte-identical, and clear about what it refuses."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outmodal.data.build.common import WORK, build_dataset
from outmodal.data.build.pool import WorkerDied
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from tests.data.build.jobs import Counting, contents, counting_plan

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that nothing disturbed, by one process at a time."""
    out = tmp_path_factory.mktemp("reference") / "dataset"
    build_dataset(counting_plan(), out, workers=1)
    return out


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that was killed after three shards."""
    out = tmp_path_factory.mktemp("interrupted") / "dataset"
    script = f"""
import os, signal
from pathlib import Path
from outmodal.data.build.common import build_dataset
from tests.data.build.jobs import counting_plan

def stop(done, total):
    if done == 12:
        os.kill(os.getpid(), signal.SIGKILL)

build_dataset(counting_plan(), Path({str(out)!r}), workers=1, progress=stop)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    return out


def test_a_build_has_every_sample_once(reference: Path) -> None:
    shards = [reference / f"train-{n:06d}.tar" for n in range(5)]
    keys = [key for shard in shards for _, key, _ in read_shard(shard)]
    assert keys == [f"train-{n:03d}" for n in range(20)]


def test_the_folder_holds_the_data_set_and_the_request(reference: Path) -> None:
    shards = {f"train-{n:06d}.tar" for n in range(5)} | {"test-000000.tar"}
    indexes = {f"{shard}.index" for shard in shards}
    expected = shards | indexes | {"dataset.json", f"{WORK}/request.json"}
    assert set(contents(reference)) == expected


def test_workers_do_not_change_a_byte(tmp_path: Path, reference: Path) -> None:
    build_dataset(counting_plan(), tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(reference)


def test_a_killed_build_goes_on_to_the_same_bytes(
    tmp_path: Path, reference: Path, interrupted: Path
) -> None:
    out, calls = tmp_path / "dataset", tmp_path / "calls"
    shutil.copytree(interrupted, out)
    assert not (out / "dataset.json").exists()
    build_dataset(counting_plan(Counting(calls=calls)), out, workers=2)
    assert contents(out) == contents(reference)
    assert calls.read_text().splitlines() == ["train 12 16", "train 16 20", "test 0 3"]


def test_leftovers_of_a_killed_build_are_removed(
    tmp_path: Path, reference: Path, interrupted: Path
) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(interrupted, out)
    staging = out / WORK / "staging-x"
    staging.mkdir()
    (staging / ".train-000004.tar.partial").write_bytes(b"half")
    (out / ".dataset.json.17.partial").write_bytes(b"{")
    build_dataset(counting_plan(), out, workers=1)
    assert contents(out) == contents(reference)


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed", "record"])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, reference: Path, interrupted: Path, damage: str
) -> None:
    out, calls = tmp_path / "dataset", tmp_path / "calls"
    shutil.copytree(interrupted, out)
    shard = out / "train-000002.tar"
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[:700])
    elif damage == "flipped":
        shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "removed":
        shard.unlink()
    else:
        (out / WORK / "train-000002.tar.json").write_text("{")
    build_dataset(counting_plan(Counting(calls=calls)), out, workers=1)
    assert contents(out) == contents(reference)
    assert calls.read_text().startswith("train 8 12\ntrain 12 16\n")


def test_a_finished_build_is_only_opened(tmp_path: Path, reference: Path) -> None:
    out, calls = tmp_path / "dataset", tmp_path / "calls"
    shutil.copytree(reference, out)
    seen: list[tuple[int, int]] = []
    dataset = build_dataset(
        counting_plan(Counting(calls=calls)), out, progress=lambda *at: seen.append(at)
    )
    assert dataset.manifest.splits["train"].samples == 20
    assert seen == [(23, 23)]
    assert not calls.exists()


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_dataset(counting_plan(), tmp_path / "d", workers=1, progress=lambda *at: seen.append(at))
    assert seen == [(done, 23) for done in (0, 4, 8, 12, 16, 20, 23)]


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused(tmp_path: Path, reference: Path, finished: bool) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(reference, out)
    if not finished:
        (out / "dataset.json").unlink()
    with pytest.raises(UserError, match="seed was 0 and is now 3; train was 20 and is now 40"):
        build_dataset(counting_plan(train=40, seed=3), out)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("\\title{}")
    with pytest.raises(UserError, match=r"not empty \(it holds 'thesis.tex'\)"):
        build_dataset(counting_plan(), tmp_path)


def test_a_data_set_of_unknown_origin_is_refused(tmp_path: Path, reference: Path) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(reference, out)
    shutil.rmtree(out / WORK)
    with pytest.raises(UserError, match="no record of how it was built"):
        build_dataset(counting_plan(), out)


def test_a_damaged_request_is_refused(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "request.json").write_text("[]")
    with pytest.raises(UserError, match=r"request.json is damaged; remove"):
        build_dataset(counting_plan(), tmp_path)


def test_a_second_builder_is_refused(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    handle = os.open(tmp_path / WORK, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is building"):
        build_dataset(counting_plan(), tmp_path)
    os.close(handle)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset").write_text("")
    with pytest.raises(UserError, match=r"cannot write the data set .*dataset"):
        build_dataset(counting_plan(), tmp_path / "dataset")


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("killed", WorkerDied, "train-000002.tar: its process ended with signal SIGKILL"),
        ("crash", WorkerDied, "train-000002.tar: its process ended with exit code 1"),
        ("source", UserError, "part.bin cannot be read"),
        ("full", UserError, r"cannot write the data set .*dataset.*File too large; free space"),
    ],
)
def test_a_failed_shard_is_named_and_the_others_are_kept(
    tmp_path: Path, reference: Path, trouble: str, error: type[Exception], message: str
) -> None:
    out = tmp_path / "dataset"
    with pytest.raises(error, match=message):
        build_dataset(counting_plan(Counting(trouble, at=9)), out, workers=1)
    assert not (out / "dataset.json").exists()
    calls = tmp_path / "calls"
    build_dataset(counting_plan(Counting(calls=calls)), out, workers=2)
    assert len(calls.read_text().splitlines()) == 4
    assert contents(out) == contents(reference)
