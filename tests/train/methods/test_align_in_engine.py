"""Alignment in the real engine: objectives and strategies agree, pieces too, and what goes wrong
is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.methods.align_job import OBJECTIVES
from tests.train.plans import lines, losses, newest

KINDS = ("force", "image", "pose")
STEPS = 6
CALL = "tests.train.methods.align_job:main"


@pytest.fixture(scope="module")
def triples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set with `force`, `image` and the vector `pose`; some samples lack one."""
    missing = {"force": range(0, 96, 7), "image": range(3, 96, 9), "pose": range(5, 96, 13)}
    root = tmp_path_factory.mktemp("triples") / "tiny"
    kinds = ("force", "image", "pose")
    return str(make_tiny(root, 96, 4, kinds, test=20, missing=missing).root)


def run(server: ForkServer, out: Path, data: str, ranks: int = 1, **engine: Any) -> Path:
    job = {"call": CALL, "out": str(out), "data": data, "engine": engine}
    server.run(job, ranks, out.with_suffix(".log"))
    return out


@pytest.fixture(scope="module")
def alone(server: ForkServer, triples: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every objective in one process."""
    return run(server, tmp_path_factory.mktemp("alone") / "run", triples)


@pytest.fixture(scope="module", params=["ddp", "zero2", "pieces"])
def other(
    request: pytest.FixtureRequest,
    server: ForkServer,
    triples: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Every objective in two processes, or by pieces of the batch."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    if request.param == "pieces":
        return run(server, out, triples, micro_batch=3)
    return run(server, out, triples, 2, strategy=request.param)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_runs_agree_with_one_process(alone: Path, other: Path, name: str) -> None:
    expected = losses(alone / name)
    assert len(expected) == STEPS
    assert losses(other / name) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    mine, theirs = (load_file(newest(p / name) / "weights.safetensors") for p in (other, alone))
    for key, value in theirs.items():
        assert torch.allclose(mine[key], value, atol=2e-5), key


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_evaluation_is_by_the_objectives_own_score(alone: Path, name: str) -> None:
    values = [r["values"] for r in lines(alone / name) if r["split"] == "eval"][-1]
    pairs = {f"{a}_to_{b}" for a in KINDS for b in KINDS if a != b}
    assert set(values) == {
        f"{p}/{v}" for p in pairs for v in ("r1_instance", "r1_class", "zero_shot")
    }
    assert all(0 <= v <= 1 for v in values.values())


def test_logs_name_the_terms(alone: Path) -> None:
    shown = {
        n: [r["values"] for r in lines(alone / n) if r["split"] == "train"] for n in OBJECTIVES
    }
    assert {"loss/force_image", "logit_scale"} <= set(shown["clip"][0])
    assert "logit_bias" in shown["siglip"][0]
    wanted = {"loss/sufficiency", "loss/minimality", "min_gram_eigenvalue"}
    assert wanted <= set(shown["ova-ib"][0])
    for rows in shown.values():
        assert all(math.isfinite(v) for row in rows for v in row.values())
