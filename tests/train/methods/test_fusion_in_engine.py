"""UME-MMA in the real engine: its schedules, and encoders that stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.forked import ForkServer
from tests.train.methods.test_in_engine import job
from tests.train.plans import lines, newest

UME = {"name": "ume_mma", "unimodal_epochs": 1, "complete_epochs": 1, "phase_lr_scale": 0.5}
FROZEN = {"name": "ume_mma", "unimodal_epochs": 2, "freeze_encoders": True}


@pytest.fixture(scope="module")
def alone(server: ForkServer, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    server.run(job(out, pairs, UME), 1, out.with_suffix(".log"))
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(newest(out) / "weights.safetensors")


def test_every_phase_has_its_loss_and_its_schedule(alone: Path) -> None:
    rows = [r for r in lines(alone) if r["split"] == "train"]
    assert [r["stage"] for r in rows] == ["unimodal"] * 6 + ["fusion"] * 12 + ["complete"] * 6
    assert {"loss/force", "loss/pose"} <= set(rows[0]["values"])
    assert {"loss/fused", "dropped"} <= set(rows[6]["values"])
    assert "dropped" not in rows[-1]["values"]
    lr = [r["values"]["lr"] for r in rows]
    assert lr[0] == pytest.approx(1e-2)
    assert lr[6] == lr[18] == pytest.approx(5e-3)  # from the top again, at half the height
    assert lr[5] < 1e-3 > lr[17]
    final = [r["values"] for r in lines(alone) if r["split"] == "eval"][-1]
    assert {"top1", "miss_force/top1", "average/top1", "only_pose/top1"} <= set(final)


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_frozen_encoders_stay_under_every_strategy(
    server: ForkServer, pairs: str, tmp_path: Path, strategy: str
) -> None:
    """Weight decay and moments do not move them either."""
    out, request = tmp_path / "run", job(tmp_path / "run", pairs, FROZEN, strategy=strategy)
    assert set(server.wait(server.start({**request, "stop_at": 12}, 2, tmp_path / "log"))) == {75}
    first = weights(out)
    server.run(request, 2, tmp_path / "log")
    last = weights(out)
    moved = {name for name, t in last.items() if not torch.equal(t, first[name])}
    assert moved
    assert all(name.startswith("heads.") for name in moved)
