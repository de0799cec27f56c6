"""InfoBridge and its comparators in the real engine: ZeRO 1 and 3, pieces and bf16, and what cannot
be trained is refused. Two ranks, ZeRO 2 and every stage: test_every_method.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.methods.balanced_job import EDITING, METHODS
from tests.train.methods.test_in_engine import job
from tests.train.plans import losses, newest

CALL = "tests.train.methods.balanced_job:main"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`force` and `pose`; some samples lack one."""
    missing = {"force": range(0, 64, 11), "pose": range(5, 64, 13)}
    root = tmp_path_factory.mktemp("pairs") / "tiny"
    return str(make_tiny(root, 64, 4, ("force", "pose"), test=20, missing=missing).root)


def run(
    server: ForkServer, out: Path, data: str, ranks: int, more: dict[str, Any], **engine: Any
) -> Path:
    request = {"call": CALL, "out": str(out), "data": data, "engine": engine, **more}
    server.run(request, ranks, out.with_suffix(".log"))
    return out


@pytest.fixture(scope="module")
def alone(server: ForkServer, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method in one process."""
    return run(server, tmp_path_factory.mktemp("alone") / "run", pairs, 1, {})


def same_weights(mine: Path, theirs: Path, atol: float) -> bool:
    found, wanted = (load_file(newest(p) / "weights.safetensors") for p in (mine, theirs))
    return all(torch.allclose(found[n], t, atol=atol, rtol=0) for n, t in wanted.items())


@pytest.mark.long
def test_zero1_trains_all(server: ForkServer, pairs: str, tmp_path: Path, alone: Path) -> None:
    out = run(server, tmp_path / "run", pairs, 2, {}, strategy="zero1")
    for name in (*METHODS, *EDITING):
        assert losses(out / name) == pytest.approx(losses(alone / name), rel=1e-5, abs=1e-5)
        assert same_weights(out / name, alone / name, 5e-5)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
@pytest.mark.parametrize("name", list(EDITING))
def test_cut_gradients_cannot_be_changed(
    server: ForkServer, pairs: str, tmp_path: Path, name: str, strategy: str
) -> None:
    request = job(tmp_path / "run", pairs, EDITING[name], strategy=strategy)
    assert server.wait(server.start(request, 1, tmp_path / "log")) == [2]
    text = (tmp_path / "log").read_text("utf-8")
    assert "whole gradients" in text
    assert "set engine.strategy to ddp or zero1" in text


@pytest.mark.long
def test_zero3_trains_infobridge(
    server: ForkServer, pairs: str, tmp_path: Path, alone: Path
) -> None:
    names = ["infobridge", "infobridge_alternate", "reconboost"]
    more = {"only": names, "persistent_below": 20}
    out = run(server, tmp_path / "run", pairs, 2, more, strategy="zero3")
    for name in names:
        assert losses(out / name) == pytest.approx(losses(alone / name), rel=1e-5, abs=1e-5)


@pytest.mark.long
def test_pieces_and_bf16(server: ForkServer, pairs: str, tmp_path: Path, alone: Path) -> None:
    names = ["ogm_ge", "mmpareto", "infobridge_alternate"]
    for name, engine in {"pieces": {"accumulate": 2}, "bf16": {"precision": "bf16"}}.items():
        out = run(server, tmp_path / name, pairs, 1, {"only": names}, **engine)
        for method in names:
            assert len(losses(out / method)) == len(losses(alone / method))
    out = run(
        server, tmp_path / "zero1", pairs, 2, {"only": names}, precision="bf16", strategy="zero1"
    )
    assert all(losses(out / method) for method in names)
