"""Checkpoints are complete or absent, verified when read, and older ones step in."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from outmodal.errors import UserError
from outmodal.train import checkpoint
from outmodal.train.checkpoint import CheckpointStore, Snapshot, read, verify
from tests.train.forked import ForkServer
from tests.train.plans import lines, newest, tiny_plan


def snapshot(step: int, size: int = 8) -> Snapshot:
    tensors = {"weights": {"b": torch.full((size,), float(step)), "a": torch.tensor(step)}}
    return Snapshot({**tensors, "ema": {}}, {"step": step, "metrics_bytes": 10 * step})


def filled(root: Path, steps: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(root, keep)
    store.prepare()
    for step in range(1, steps + 1):
        store.save(step, snapshot(step))
    return store


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = filled(tmp_path / "checkpoints", 5)
    path = store.newest()
    assert path is not None
    assert path.name == "step-00000005"
    assert (store.root / "latest").read_text() == "step-00000005\n"
    assert [step for step, _ in store.steps()] == [5, 4, 3]
    found = read(path, ("weights", "ema"))
    assert found.state["metrics_bytes"] == 50
    assert found.tensors["weights"]["b"].tolist() == [5.0] * 8
    assert found.tensors["ema"] == {}
    assert not list(store.root.glob(".tmp-*"))


def test_no_checkpoint_is_no_mistake(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").newest() is None


def damage_byte(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def damage_length(path: Path) -> None:
    data = (path / "weights.safetensors").read_bytes()
    (path / "weights.safetensors").write_bytes(data[:-1])


def damage_missing(path: Path) -> None:
    (path / "state.json").unlink()


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 1, "files"')


def damage_format(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 9}))


def damage_empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES = {
    "sha256": (damage_byte, "weights.safetensors has another sha256"),
    "length": (damage_length, "weights.safetensors has"),
    "missing": (damage_missing, "state.json is missing"),
    "manifest": (damage_manifest, "manifest.json or a file cannot be read"),
    "format": (damage_format, "format 9"),
    "empty": (damage_empty, "manifest.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_steps_in(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, words = DAMAGES[kind]
    store = filled(tmp_path / "checkpoints", 3)
    damage(store.root / "step-00000003")
    assert words in str(verify(store.root / "step-00000003"))
    with caplog.at_level(logging.WARNING):
        path = store.newest(repair=True)
    assert path is not None
    assert path.name == "step-00000002"
    assert "step-00000003" in caplog.text
    assert words in caplog.text
    assert "step-00000002, the one before" in caplog.text
    store.save(3, snapshot(3))  # the run comes by again; the damaged one does not count as kept
    assert [step for step, _ in store.steps()] == [3, 2, 1]
    assert (store.root / "damaged-step-00000003").is_dir()


def test_none_readable_is_a_user_error(tmp_path: Path) -> None:
    store = filled(tmp_path / "checkpoints", 2)
    for _, path in store.steps():
        damage_byte(path)
    with pytest.raises(UserError, match=r"step-00000002.*step-00000001.*start over"):
        store.newest()


def test_left_overs_of_a_killed_save_go(tmp_path: Path) -> None:
    store = filled(tmp_path / "checkpoints", 1)
    (store.root / ".tmp-step-00000002").mkdir()
    (store.root / ".tmp-step-00000002" / "weights.safetensors").write_bytes(b"half")
    store.prepare()
    assert not list(store.root.glob(".tmp-*"))
    assert store.newest() is not None


def test_a_failing_save_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "checkpoints", 2)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "write_json", refuse)
    with pytest.raises(UserError, match=r"step-00000003.*Permission denied"):
        store.save(3, snapshot(3))
    assert not list(store.root.glob(".tmp-*"))
    assert (store.root / "latest").read_text() == "step-00000002\n"
    assert store.newest() == store.root / "step-00000002"


def no_room(job: dict[str, str]) -> None:
    """Runs in a process that may not write files over 4 kB."""
    store = CheckpointStore(Path(job["root"]))
    store.prepare()
    store.save(1, snapshot(1))
    store.save(2, snapshot(2, size=100_000))


@pytest.mark.parametrize(
    ("ranks", "room", "every", "what"),
    [
        (1, 4500, (100, 2), "cannot save checkpoint step-00000006"),
        (2, 4500, (100, 2), "cannot save checkpoint step-00000006"),
        (2, 1800, (1, 100), "metrics.jsonl: File too large"),
    ],
)
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    server: ForkServer,
    data: str,
    tmp_path: Path,
    ranks: int,
    room: int,
    every: tuple[int, int],
    what: str,
) -> None:
    log, out = tmp_path / "log", tmp_path / "run"
    engine = {"epochs": 2, "log_every": every[0], "checkpoint_every": every[1]}
    job = {"plan": {"out": str(out), "data": data, "engine": engine}}
    assert server.wait(server.start({**job, "stop_at": 4}, ranks, log)) == [75] * ranks
    before = newest(out)
    log = tmp_path / "limited"
    codes = server.wait(server.start({**job, "file_size": room}, ranks, log))
    text = log.read_text()
    assert codes == [2] * ranks, text
    assert what in text
    assert "run the same command again" in text
    assert newest(out) == before
    assert verify(before) is None
    assert not list((out / "checkpoints").glob(".tmp-*"))
    server.run(job, ranks, log)


def test_a_full_disk_under_the_store(server: ForkServer, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    call = "tests.train.test_checkpoint:no_room"
    job = {"call": call, "root": str(root), "file_size": 4096}
    assert server.wait(server.start(job, 1, tmp_path / "log")) == [2]
    text = (tmp_path / "log").read_text()
    assert f"cannot save checkpoint step-00000002 in {root}: no room" in text
    assert CheckpointStore(root).newest() == root / "step-00000001"


def test_a_damaged_checkpoint_costs_only_steps(data: str, tmp_path: Path) -> None:
    from outmodal.train.run import train

    engine = {"epochs": 2, "checkpoint_every": 4, "keep": 3}
    calm, hurt = (tiny_plan(tmp_path / name, data, engine) for name in ("calm", "hurt"))
    train(calm)
    train(hurt)
    (hurt.out / "result.json").unlink()
    damage_byte(newest(hurt.out))
    assert train(hurt).metrics == train(calm).metrics
    assert lines(hurt.out) == lines(calm.out)
