"""Counts of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outmodal.data import stats as stats_module
from outmodal.data.describe import describe
from outmodal.data.stats import dataset_stats
from outmodal.errors import UserError
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
    assert train["unlabelled"] == 0
    speech = train["modalities"]["speech"]
    assert (speech["present"], speech["missing_rate"]) == (7, 0.3)
    assert speech["bytes"] == 7 * (44 + 1600)
    assert speech["seconds"] == {"min": 0.1, "mean": 0.1, "max": 0.1}
    assert train["modalities"]["pose"]["missing_rate"] == 0.1
    assert train["modalities"]["image"]["height"]["max"] == 12
    assert stats["splits"]["test"]["modalities"]["speech"]["missing_rate"] == 0
    assert stats["fingerprint"] == dataset.fingerprint()


def test_large_splits_are_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "PROBED", 2)
    opened = []

    def counting(kind: str, ext: str, data: bytes) -> object:
        opened.append(kind)
        return describe(kind, ext, data)

    monkeypatch.setattr(stats_module, "describe", counting)
    dataset_stats(make_tiny(tmp_path / "data", modalities=("pose",)))
    assert len(opened) == 4  # two of each split


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
