"""Counts of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outmodal.data import stats_shard
from outmodal.data.decode import decode, find_member
from outmodal.data.describe import describe
from outmodal.data.manifest import open_dataset
from outmodal.data.shards import read_shard
from outmodal.data.stats import dataset_stats
from outmodal.errors import UserError
from tests.data.test_check import rewrite
from tests.data.tiny import make_tiny


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))


def test_counts_are_those_of_the_data(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", samples=10, missing={"speech": {0, 1, 2}, "pose": {9}})
    stats = dataset_stats(dataset)
    assert json.loads(json.dumps(stats)) == stats
    train = stats["splits"]["train"]
    assert train["samples"] == 10
    assert train["shards"] == 3
    assert train["bytes"] == sum(p.stat().st_size for p in dataset.root.glob("train-*.tar"))
    assert train["classes"] == {"red": 4, "green": 3, "blue": 3}
    assert (train["unlabelled"], train["decoded"]) == (0, 10)
    assert train["balance"] == pytest.approx(0.9912, abs=1e-4)
    speech = train["modalities"]["speech"]
    assert (speech["present"], speech["missing_rate"]) == (7, 0.3)
    assert speech["bytes"] == 7 * (44 + 1600)
    assert speech["seconds"] == {"min": 0.1, "mean": 0.1, "max": 0.1, "total": 0.7}
    assert train["modalities"]["pose"]["missing_rate"] == 0.1
    assert train["modalities"]["image"]["height"]["max"] == 12
    assert stats["splits"]["test"]["modalities"]["speech"]["missing_rate"] == 0
    assert stats["fingerprint"] == dataset.fingerprint()


def test_a_sample_of_a_large_split_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def counting(kind: str, ext: str, data: bytes) -> object:
        opened.append(kind)
        return describe(kind, ext, data)

    monkeypatch.setattr(stats_shard, "describe", counting)
    stats = dataset_stats(make_tiny(tmp_path / "data", modalities=("pose",)), sample=2)
    assert len(opened) == 4  # two of each split
    train = stats["splits"]["train"]
    assert (train["decoded"], train["modalities"]["pose"]["present"]) == (2, 24)
    assert sum(train["classes"].values()) == 24


def test_values_are_those_of_the_data(tmp_path: Path) -> None:
    """Against all values of a split at once, in float64."""
    dataset = make_tiny(tmp_path / "data", missing={"speech": {0, 5}})
    held: dict[str, list[NDArray[Any]]] = {}
    for shard in dataset.manifest.splits["train"].shards:
        for _, _, members in read_shard(dataset.shard(shard)):
            for name, spec in dataset.manifest.modalities.items():
                data = find_member(spec, name, members)
                value = "" if data is None else decode(spec, data)
                if not isinstance(value, str):
                    held.setdefault(name, []).append(value)
    stats = dataset_stats(dataset)["splits"]["train"]["modalities"]
    pixels = np.concatenate([v.reshape(-1, 1) for v in held["image"]]) / 255
    waves = np.concatenate(held["speech"])[:, None].astype(np.float64)
    steps = np.concatenate(held["force"]).astype(np.float64)
    poses = np.stack(held["pose"]).astype(np.float64)
    for name, rows in (("image", pixels), ("speech", waves), ("force", steps), ("pose", poses)):
        (found,) = stats[name]["values"]
        assert (found["count"], found["columns"]) == rows.shape
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found["std"], rows.std(0), rtol=1e-5)
        np.testing.assert_allclose(found["max"], rows.max(0), rtol=1e-5)
    assert stats["pose"]["length"]["mean"] == pytest.approx(
        np.linalg.norm(poses, axis=1).mean(), rel=1e-5
    )
    assert stats["speech"]["seconds"]["total"] == pytest.approx(2.2)
    assert stats["text"]["values"] == []


def test_any_number_of_processes_gives_the_same(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data")
    seen: list[tuple[int, int]] = []
    alone = dataset_stats(dataset, progress=lambda *done: seen.append(done))
    assert seen == [(n, 5) for n in range(1, 6)]
    assert dataset_stats(dataset, workers=2) == alone


def test_duplicates_and_leakage_are_named(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data")
    image = next(iter(read_shard(dataset.root / "train-000000.tar")))[2]["image.png"]

    def same(samples: dict[str, dict[str, bytes]]) -> None:
        for key in list(samples)[:2]:
            samples[key]["image.png"] = image

    for name in ("train-000002.tar", "test-000001.tar"):
        rewrite(dataset, name, same)
    found = dataset_stats(open_dataset(dataset.root))["duplicates"]
    assert found["image"]["extra"] == {"train": 2, "test": 1}
    assert found["image"]["shared"] == {"train/test": {"contents": 1, "train": 3, "test": 2}}
    first = found["image"]["examples"][0]
    assert first[0] == "train-000000.tar:train-00000"
    assert first[-1] == "test-000001.tar:test-00007"
    assert found["whole sample"] == {"distinct": 36, "extra": {}, "shared": {}, "examples": []}


def test_corrupt_members_are_counted(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data")
    rewrite(dataset, "test-000000.tar", lambda s: s["test-00001"].update({"pose.npy": b"x"}))
    stats = dataset_stats(open_dataset(dataset.root))["splits"]["test"]["modalities"]
    assert (stats["pose"]["corrupt"], stats["pose"]["values"][0]["count"]) == (1, 11)


def test_an_empty_split_counts_nothing(tmp_path: Path) -> None:
    stats = dataset_stats(make_tiny(tmp_path / "data", test=0))["splits"]["test"]
    assert stats["samples"] == stats["bytes"] == stats["modalities"]["image"]["present"] == 0


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data")
    path = dataset.root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(UserError, match=r"train-000001\.tar: holds .*data check"):
        dataset_stats(dataset)
    path.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar.*data check"):
        dataset_stats(dataset)
