"""Comparators with queues, running means, views and mixing in the real engine: strategies agree,
and a stopped run goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.plans import lines, losses, newest

FORCE = {"unknown": "force", "label_fraction": 0.25}
FAST = {"momentum": 0.9, "queue": 40, "contrast_dim": 8}
COX = {"known": ["pose"], "vib_hidden": 16, "vib_latent": 4, "warmup_epochs": 1, "dim": 7}
METHODS: dict[str, dict[str, Any]] = {
    "ssl": {"name": "ssl", **FORCE},
    "ssl_unsup": {"name": "ssl", "unknown": "text", "setting": "unsup"},
    "moco": {"name": "moco", **FORCE, **FAST},
    "moco_unsup": {"name": "moco", **FORCE, **FAST, "setting": "unsup"},
    "moco_cox": {"name": "moco_cox", **FORCE, **FAST, **COX},
    "freematch": {"name": "freematch", **FORCE, "unlabelled_ratio": 2, "ema": 0.9},
    "mixtext": {
        "name": "mixtext",
        "unknown": "text",
        "label_fraction": 0.25,
        "unlabelled_ratio": 2,
        "encoder_lr_scale": 0.5,
    },
}
STATEFUL = ("moco", "moco_cox", "freematch", "mixtext")
RESULTS = {
    "ssl_unsup": {"top1", "top5", "matched/top1"},
    "moco_unsup": {"top1", "top5", "matched/top1", "clusters/top1"},
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set with `force` and `text` to learn and `pose` known; some samples lack one."""
    missing = {"force": range(0, 96, 11), "text": range(3, 96, 17), "pose": range(5, 96, 13)}
    root = tmp_path_factory.mktemp("three") / "tiny"
    names = ("force", "pose", "text")
    return str(make_tiny(root, 96, 4, names, test=20, missing=missing).root)


def job(out: Path, data: str, name: str, **engine: Any) -> dict[str, Any]:
    sections = {"method": METHODS[name], "engine": {"epochs": 2, **engine}}
    call = "tests.train.methods.viewed_job:main"
    return {"call": call, "out": str(out), "data": data, **sections}


@pytest.fixture(scope="module")
def alone(server: ForkServer, three: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each method in one process, which the others are compared with."""
    root = tmp_path_factory.mktemp("alone")
    for name in METHODS:
        server.run(job(root / name, three, name), 1, root / "log")
    return root


@pytest.mark.parametrize("name", list(METHODS))
def test_it_trains_and_evaluates(alone: Path, name: str) -> None:
    last = [r["values"] for r in lines(alone / name) if r["split"] == "eval"][-1]
    assert RESULTS.get(name, {"top1", "top5"}) <= set(last)
    values = losses(alone / name)
    assert len(values) == 12
    assert all(v == v for v in values)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ssl", *STATEFUL])
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_ranks_have_the_same_losses(
    server: ForkServer, three: str, tmp_path: Path, alone: Path, name: str, strategy: str
) -> None:
    server.run(job(tmp_path / "run", three, name, strategy=strategy), 2, tmp_path / "log")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone / name), abs=1e-5, rel=1e-5)
    if name in STATEFUL:
        mine, theirs = (
            load_file(newest(p) / "method.safetensors") for p in (tmp_path / "run", alone / name)
        )
        assert mine.keys() == theirs.keys()
        for key, t in mine.items():
            assert torch.allclose(t.double(), theirs[key].double(), atol=1e-4), key


@pytest.mark.long
@pytest.mark.parametrize("name", ["ssl_unsup", *STATEFUL])
def test_a_stopped_run_goes_on_bit_for_bit(
    server: ForkServer, three: str, tmp_path: Path, alone: Path, name: str
) -> None:
    request = job(tmp_path / "run", three, name)
    assert server.wait(server.start({**request, "stop_at": 9}, 1, tmp_path / "log")) == [75]
    server.run(request, 1, tmp_path / "log")
    assert losses(tmp_path / "run") == losses(alone / name)
    for part in ("weights", "method") if name in STATEFUL else ("weights",):
        mine, theirs = (
            load_file(newest(p) / f"{part}.safetensors") for p in (tmp_path / "run", alone / name)
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(t, theirs[key]) for key, t in mine.items())


def test_a_momentum_encoder_is_not_trained_by_the_engine(alone: Path) -> None:
    weights = load_file(newest(alone / "moco") / "weights.safetensors")
    state = load_file(newest(alone / "moco") / "method.safetensors")
    assert not any("momentum" in name for name in weights)
    followed = [name for name in state if name.startswith("momentum/learner/")]
    trained = {name.removeprefix("learner.") for name in weights if name.startswith("learner.")}
    assert {name.removeprefix("momentum/learner/") for name in followed} == trained
    assert state["queue/key"].shape == (40, 8)


def test_micro_batches_and_bf16(server: ForkServer, three: str, tmp_path: Path) -> None:
    for name, engine in {
        "moco": {"accumulate": 2},
        "freematch": {"precision": "bf16"},
        "mixtext": {"precision": "bf16", "strategy": "zero2"},
        "moco_cox": {"precision": "bf16", "strategy": "zero2"},
    }.items():
        ranks = 2 if "strategy" in engine else 1
        server.run(job(tmp_path / name, three, name, **engine), ranks, tmp_path / "log")
        assert len(losses(tmp_path / name)) == 12


def test_zero3_refuses_a_momentum_encoder(server: ForkServer, three: str, tmp_path: Path) -> None:
    request = job(tmp_path / "run", three, "moco", strategy="zero3")
    codes = server.wait(server.start({**request, "persistent_below": 20}, 2, tmp_path / "log"))
    assert set(codes) == {2}
    assert "choose engine.strategy zero2 or ddp" in (tmp_path / "log").read_text("utf-8")
