"""Unsupervised COX in the real engine: strategies agree, and every stage goes on as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.forked import ForkServer
from tests.train.methods.test_in_engine import job
from tests.train.plans import lines, losses, newest

UNSUP: dict[str, Any] = {
    "name": "cox",
    "setting": "unsup",
    "unknown": "force",
    "known": ["pose"],
    "vib_hidden": 16,
    "vib_latent": 4,
    "warmup_epochs": 2,
    "centroid_min": 1,
}
STOPS = {"bootstrap": 3, "warmup": 9, "main": 15}  # of six steps an epoch: one, one, two epochs


@pytest.fixture(scope="module")
def alone(server: ForkServer, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, which the others are compared with."""
    out = tmp_path_factory.mktemp("alone") / "run"
    server.run(job(out, pairs, UNSUP), 1, out.with_suffix(".log"))
    return out


def test_each_stage_logs_its_terms(alone: Path) -> None:
    terms: dict[str, set[str]] = {}
    for row in lines(alone):
        if row["split"] == "train":
            terms.setdefault(row["stage"], set()).update(row["values"])
    assert "loss/recon" not in terms["bootstrap"]
    assert {"loss/agree", "loss/recon", "loss/heads"} <= terms["warmup"]
    assert {"loss/agree", "loss/recon", "loss/heads", "loss/explore"} <= terms["main"]


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_ranks_are_one(
    server: ForkServer, pairs: str, tmp_path: Path, alone: Path, strategy: str
) -> None:
    out = tmp_path / "run"
    request = job(out, pairs, UNSUP, strategy=strategy)
    server.run({**request, "persistent_below": 20}, 2, tmp_path / "log")
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    mine, theirs = (load_file(newest(p) / "method.safetensors") for p in (out, alone))
    assert torch.equal(mine["roles"], theirs["roles"])


@pytest.mark.parametrize("stage", list(STOPS))
def test_every_stage_goes_on_after_a_stop(
    server: ForkServer, pairs: str, tmp_path: Path, alone: Path, stage: str
) -> None:
    request = job(tmp_path / "run", pairs, UNSUP)
    codes = server.wait(server.start({**request, "stop_at": STOPS[stage]}, 1, tmp_path / "log"))
    assert codes == [75]
    server.run(request, 1, tmp_path / "log")
    assert losses(tmp_path / "run") == losses(alone)
    for name in ("weights", "method"):
        mine, theirs = (
            load_file(newest(p) / f"{name}.safetensors") for p in (tmp_path / "run", alone)
        )
        for key, t in mine.items():  # an accuracy on nothing is NaN, and stays so
            assert torch.equal(t.double().nan_to_num(-1.0), theirs[key].double().nan_to_num(-1.0))


def test_the_paper_without_a_warm_up_and_batches_of_a_class_run(
    server: ForkServer, pairs: str, tmp_path: Path
) -> None:
    for name, keys in {
        "paper": {"fidelity": "paper", "warmup_epochs": 1},
        "cold": {"warmup_epochs": 0},
        "random": {"warm_pairs": "class_random", "boot_align": "coral", "im_paired": False},
    }.items():
        server.run(job(tmp_path / name, pairs, {**UNSUP, **keys}), 1, tmp_path / "log")
        assert len(losses(tmp_path / name)) == 24
    assert "top1" in [r["values"] for r in lines(tmp_path / "cold") if r["split"] == "eval"][-1]
