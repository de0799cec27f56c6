"""Every strategy trains the same: one process, DDP and ZeRO 0 to 3, with one and more ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.forked import ForkServer
from tests.train.plans import lines, losses, newest

ENGINE = {"epochs": 2, "ema": 0.9, "eval_every": 1}


def trained(
    server: ForkServer,
    out: Path,
    data: str,
    ranks: int,
    method: Mapping[str, Any] | None = None,
    **engine: Any,
) -> Path:
    sections = {"engine": {**ENGINE, **engine}, "method": dict(method or {})}
    job = {"plan": {"out": str(out), "data": data, **sections}}
    server.run({**job, "persistent_below": 20}, ranks, out.with_suffix(".log"))
    return out


@pytest.fixture(scope="module")
def alone(server: ForkServer, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that the others are compared with."""
    return trained(server, tmp_path_factory.mktemp("alone") / "run", data, 1)


CASES = [
    (2, "ddp"),
    (1, "zero1"),
    (2, "zero0"),
    (2, "zero1"),
    (2, "zero2"),
    (2, "zero3"),
    (4, "zero3"),
]


@pytest.mark.parametrize(("ranks", "strategy"), CASES)
def test_losses_and_weights_equal_those_of_one_process(
    server: ForkServer, data: str, tmp_path: Path, alone: Path, ranks: int, strategy: str
) -> None:
    out = trained(server, tmp_path / "run", data, ranks, strategy=strategy)
    assert len(losses(out)) == 12
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    for mine, theirs in zip(lines(out), lines(alone), strict=True):
        assert mine["values"] == pytest.approx(theirs["values"], abs=1e-4)
    for part in ("weights", "optimizer", "ema"):
        mine = load_file(newest(out) / f"{part}.safetensors")
        theirs = load_file(newest(alone) / f"{part}.safetensors")
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], atol=2e-5, rtol=1e-3)


def test_without_clipping_too(server: ForkServer, data: str, tmp_path: Path) -> None:
    outs = [
        trained(server, tmp_path / s, data, ranks, strategy=s, clip=0.0)
        for ranks, s in ((1, "single"), (2, "zero2"), (2, "zero3"))
    ]
    norms = [[r["values"]["grad_norm"] for r in lines(o) if r["split"] == "train"] for o in outs]
    for out, norm in zip(outs[1:], norms[1:], strict=True):
        assert losses(out) == pytest.approx(losses(outs[0]), abs=1e-5)
        assert norm == pytest.approx(norms[0], abs=1e-4)


def test_accumulation_is_the_same_for_all(server: ForkServer, data: str, tmp_path: Path) -> None:
    alone = trained(server, tmp_path / "alone", data, 1, accumulate=2)
    assert len(losses(alone)) == 12
    for strategy in ("ddp", "zero1", "zero2", "zero3"):
        out = trained(server, tmp_path / strategy, data, 2, strategy=strategy, accumulate=2)
        assert losses(out) == pytest.approx(losses(alone), abs=1e-5)


def test_micro_batches_add_up_to_the_batch(server: ForkServer, data: str, tmp_path: Path) -> None:
    """For a loss that is a mean over rows, nothing but the memory changes."""
    runs = [
        trained(server, tmp_path / f"{pieces}", data, 1, {"rows_only": True}, accumulate=pieces)
        for pieces in (1, 2, 4)
    ]
    for out in runs[1:]:
        assert losses(out) == pytest.approx(losses(runs[0]), abs=1e-5)


def test_bf16_stays_near_fp32_and_keeps_fp32_masters(
    server: ForkServer, data: str, tmp_path: Path, alone: Path
) -> None:
    outs = [
        trained(server, tmp_path / s, data, 2, strategy=s, precision="bf16")
        for s in ("ddp", "zero1", "zero3")
    ]
    for out in outs:
        assert losses(out) == pytest.approx(losses(alone), rel=0.03)
        weights = load_file(newest(out) / "weights.safetensors")
        assert {t.dtype for t in weights.values()} == {torch.float32}
        assert any(not torch.equal(t, t.bfloat16().float()) for t in weights.values())


def test_bf16_without_sharding_is_refused(server: ForkServer, data: str, tmp_path: Path) -> None:
    job = {
        "plan": {
            "out": str(tmp_path / "run"),
            "data": data,
            "engine": {"strategy": "zero0", "precision": "bf16"},
        }
    }
    log = tmp_path / "log"
    assert server.wait(server.start(job, 2, log)) == [2, 2]
    assert "choose ddp or zero1" in log.read_text("utf-8")
