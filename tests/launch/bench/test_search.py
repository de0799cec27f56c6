"""`outmodal bench search`: it runs, its answer has all its parts, and nothing is timed here."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from outmodal.errors import UserError
from outmodal.launch.bench import search
from outmodal.launch.bench.search import Settings, compare, exact_column, features, measure
from outmodal.launch.cli import main
from outmodal.launch.commands import bench

SMALL = Settings(n=40, mo=60, d=8, k=2, checked=10)


@pytest.mark.long
def test_the_command_measures_in_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--n", "50", "--d", "16", "--k", "2", "--peer_n", "30", "--repeats", "1"]
    assert main(["bench", "search", *options, "--threads", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    whole = found["search"]
    assert (whole["n"], whole["mo"], whole["k"], whole["threads"]) == (50, 50, 2, 1)
    assert whole["wrong"] == 0
    assert whole["peak_mib"] > whole["over_mib"] >= 0
    assert min(whole[key] for key in ("wall_s", "cpu_s", "gflops", "features_mib")) > 0
    names = [row["name"] for row in found["peers"]]
    assert names == ["outmodal", "torch.cdist in chunks", "torch.cdist at once"]
    assert found["peers"][0]["ratio"] == 1.0
    assert found["peers"][0]["wrong"] == 0
    text = search.table(found)
    assert "0 of 50 rows differ from brute force" in text
    assert all(name in text for name in names)


def test_wrong_columns_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(z: torch.Tensor, v: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(z)), torch.zeros(len(z), dtype=torch.int64)

    assert measure(SMALL)["wrong"] == 0
    monkeypatch.setattr(search, "nearest_over_ranks", first)
    assert measure(SMALL)["wrong"] > 5
    assert compare(SMALL, 30, 1)[0]["wrong"] > 5


def test_brute_force_takes_the_mean_of_distances() -> None:
    z, v = features(3, 5, 0), [features(20, 5, 1), features(20, 5, 2)]
    gaps = torch.stack([torch.cdist(z, part) for part in v]).mean(dim=0)
    assert [exact_column(row, v) for row in z] == gaps.argmin(dim=1).tolist()


@pytest.mark.parametrize("option", ["n", "d", "k", "repeats"])
def test_numbers_that_measure_nothing_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"--{option} must be at least 1, got 0"):
        bench.run(["search", f"--{option}", "0"])


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU"):
        bench.run(["search", "--device", "cuda"])
