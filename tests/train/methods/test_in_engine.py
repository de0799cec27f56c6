"""The methods in the real engine: every strategy agrees, and a stopped COX goes on as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.forked import ForkServer
from tests.train.plans import lines, losses, newest

COX = {
    "name": "cox",
    "unknown": "force",
    "known": ["pose"],
    "label_fraction": 0.25,
    "vib_hidden": 16,
    "vib_latent": 4,
    "warmup_epochs": 1,
}


def job(out: Path, data: str, method: dict[str, Any], **engine: Any) -> dict[str, Any]:
    sections = {"method": method, "engine": {"epochs": 4, **engine}}
    call = "tests.train.methods.engine_job:main"
    return {"call": call, "out": str(out), "data": data, **sections}


@pytest.fixture(scope="module")
def alone(server: ForkServer, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COX in one process, which the others are compared with."""
    out = tmp_path_factory.mktemp("alone") / "run"
    server.run(job(out, pairs, COX), 1, out.with_suffix(".log"))
    return out


def test_cox_logs_its_terms_and_diagnostics(alone: Path) -> None:
    rows = lines(alone)
    epochs = [r["values"] for r in rows if r["split"] == "epoch"]
    assert len(epochs) == 4
    assert {"agreement_rate", "anchor_purity", "mmd/pose", "z_std"} <= set(epochs[0])
    terms = [r["values"] for r in rows if r["split"] == "train"]
    assert "loss/explore" not in terms[0]
    assert {"loss/recon", "loss/heads", "loss/agree", "loss/explore"} <= set(terms[-1])


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_cox_is_the_same_under_every_strategy(
    server: ForkServer, pairs: str, tmp_path: Path, alone: Path, strategy: str
) -> None:
    out = tmp_path / "run"
    request = job(out, pairs, COX, strategy=strategy)
    server.run({**request, "persistent_below": 20}, 2, tmp_path / "log")
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    mine, theirs = (load_file(newest(p) / "method.safetensors") for p in (out, alone))
    assert torch.equal(mine["roles"], theirs["roles"])


def test_cox_goes_on_after_a_stop_within_exploration(
    server: ForkServer, pairs: str, tmp_path: Path, alone: Path
) -> None:
    request = job(tmp_path / "run", pairs, COX)
    codes = server.wait(server.start({**request, "stop_at": 15}, 1, tmp_path / "log"))
    assert codes == [75]
    server.run(request, 1, tmp_path / "log")
    assert losses(tmp_path / "run") == losses(alone)
    mine, theirs = (load_file(newest(p) / "weights.safetensors") for p in (tmp_path / "run", alone))
    assert all(torch.equal(t, theirs[name]) for name, t in mine.items())


def test_a_method_without_steps_is_evaluated(
    server: ForkServer, pairs: str, tmp_path: Path
) -> None:
    method = {"name": "random", "unknown": "force", "label_fraction": 0.25}
    server.run(job(tmp_path / "run", pairs, method, epochs=2), 1, tmp_path / "log")
    last = [r["values"] for r in lines(tmp_path / "run") if r["split"] == "eval"][-1]
    assert {"top1", "top5"} <= set(last)
    assert losses(tmp_path / "run") == []


def test_cox_with_micro_batches_and_bf16(server: ForkServer, pairs: str, tmp_path: Path) -> None:
    for name, engine in {
        "pieces": {"accumulate": 2},
        "bf16": {"precision": "bf16"},
        "zero2": {"precision": "bf16", "strategy": "zero2"},
    }.items():
        ranks = 2 if "strategy" in engine else 1
        server.run(job(tmp_path / name, pairs, COX, **engine), ranks, tmp_path / "log")
        assert len(losses(tmp_path / name)) == 24
