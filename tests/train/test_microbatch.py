"""Pieces of a batch give the whole batch's gradient, in the memory of a piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outmodal.data.batch import Batch
from outmodal.errors import StoppedEarly, UserError
from outmodal.train.engine import Engine
from outmodal.train.microbatch import MicroBatches
from outmodal.train.run import RunPlan, train
from tests.train.forked import ForkServer
from tests.train.held import Held
from tests.train.plans import lines, losses, newest, tiny_data, tiny_plan
from tests.train.test_engine import same_files, stop_after
from tests.train.whole import whole_plan

ENGINE = {"epochs": 2, "ema": 0.9}


def trained(
    server: ForkServer,
    out: Path,
    data: str,
    ranks: int,
    method: Mapping[str, Any] | None = None,
    batch: int = 16,
    streams: int = 4,
    **engine: Any,
) -> Path:
    plan = {
        "out": str(out),
        "data": data,
        "engine": {**ENGINE, **engine},
        "method": dict(method or {}),
        "stream": {"batch": batch, "streams": streams},
    }
    job = {"call": "tests.train.whole:run", "plan": plan, "persistent_below": 20}
    server.run(job, ranks, out.with_suffix(".log"))
    return out


@pytest.fixture(scope="module")
def alone(server: ForkServer, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, all rows at once: what the others are compared with."""
    return trained(server, tmp_path_factory.mktemp("alone") / "run", data, 1)


def same_run(mine: Path, theirs: Path) -> None:
    assert losses(mine) == pytest.approx(losses(theirs), abs=1e-5)
    for one, other in zip(lines(mine), lines(theirs), strict=True):
        assert one["values"] == pytest.approx(other["values"], abs=1e-4)
    for part in ("weights", "optimizer", "ema"):
        one = load_file(newest(mine) / f"{part}.safetensors")
        other = load_file(newest(theirs) / f"{part}.safetensors")
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], atol=2e-5, rtol=1e-3)


CASES = [
    (1, "single", "auto", 5),
    (2, "ddp", "ring", 0),
    (2, "ddp", "gather", 3),
    (2, "ddp", "ring", 3),
    (1, "zero2", "auto", 7),
    (2, "zero1", "ring", 3),
    (2, "zero2", "gather", 0),
    (2, "zero2", "ring", 3),
    (2, "zero3", "gather", 3),
]


@pytest.mark.parametrize(("ranks", "strategy", "exchange", "rows"), CASES)
def test_a_run_in_pieces_equals_one_process_with_all_rows_at_once(
    server: ForkServer,
    data: str,
    tmp_path: Path,
    alone: Path,
    ranks: int,
    strategy: str,
    exchange: str,
    rows: int,
) -> None:
    method = {"exchange": exchange}
    out = trained(
        server, tmp_path / "run", data, ranks, method, strategy=strategy, micro_batch=rows
    )
    assert len(losses(out)) == 12
    same_run(out, alone)


def test_three_ranks_too(server: ForkServer, data: str, tmp_path: Path) -> None:
    alone = trained(server, tmp_path / "alone", data, 1, batch=12, streams=3)
    for exchange, rows in (("gather", 0), ("ring", 3)):
        out = tmp_path / exchange
        trained(
            server, out, data, 3, {"exchange": exchange}, 12, 3, strategy="ddp", micro_batch=rows
        )
        same_run(out, alone)


def plan_of(
    out: Path, data: str, method: Mapping[str, Any] | None = None, **engine: Any
) -> RunPlan:
    return whole_plan(
        out, {"data": data, "engine": {**ENGINE, **engine}, "method": dict(method or {})}
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 5, 16, 99])
def test_noise_is_replayed_exactly(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, precision: str
) -> None:
    """The gradient is that of one graph of all pieces, drawn from the same generator."""
    original, compared = MicroBatches.gradient, []

    def gradient(self: MicroBatches, batches: Mapping[str, Batch], stage: str, step: int) -> Any:
        router = self._backend.router
        params = [p for p in router.method.parameters() if p.requires_grad]
        begin = torch.get_rng_state()
        batch = batches["all"]
        parts = [
            router("encode", {"all": batch.rows(slice(at, at + rows))}, stage, step)
            for at in range(0, len(batch), rows)
        ]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        bare = {"all": replace(batch, x={})}
        loss, _ = router("objective", whole, bare, stage, step)
        expected = torch.autograd.grad(loss, params)
        end = torch.get_rng_state()
        torch.set_rng_state(begin)
        got, logs = original(self, batches, stage, step)
        assert torch.equal(torch.get_rng_state(), end)
        torch.testing.assert_close(got, loss.detach())
        for p, grad in zip(params, expected, strict=True):
            torch.testing.assert_close(
                p.grad, grad, atol=1e-5 if precision == "fp32" else 2e-3, rtol=1e-5
            )
        compared.append(step)
        return got, logs

    monkeypatch.setattr(MicroBatches, "gradient", gradient)
    plan = plan_of(
        tmp_path / "run", data, {"dropout": 0.4}, micro_batch=rows, max_steps=3, precision=precision
    )
    train(plan)
    assert compared == [0, 1, 2]


def test_a_stopped_run_goes_on_bit_for_bit(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, torn = (
        plan_of(tmp_path / n, data, {"dropout": 0.4}, micro_batch=5) for n in ("calm", "torn")
    )
    train(calm)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(StoppedEarly):
            train(torn)
    train(torn)
    same_files(calm.out, torn.out)


def test_two_ranks_with_noise_go_on_bit_for_bit(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    outs = [tmp_path / n for n in ("calm", "torn")]
    engine = {**ENGINE, "strategy": "zero2", "micro_batch": 3, "precision": "bf16"}
    jobs = [
        {
            "call": "tests.train.whole:run",
            "plan": {"out": str(o), "data": data, "engine": engine, "method": {"dropout": 0.4}},
        }
        for o in outs
    ]
    server.run(jobs[0], 2, tmp_path / "log")
    stopped = server.start({**jobs[1], "stop_at": 5}, 2, tmp_path / "log")
    assert server.wait(stopped) == [75, 75]
    server.run(jobs[1], 2, tmp_path / "log")
    same_files(*outs)


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3"])
def test_bf16_in_pieces_is_bf16_at_once(
    server: ForkServer, data: str, tmp_path: Path, strategy: str
) -> None:
    outs = [
        trained(
            server,
            tmp_path / f"{rows}",
            data,
            2,
            strategy=strategy,
            precision="bf16",
            micro_batch=rows,
        )
        for rows in (0, 3)
    ]
    assert losses(outs[1]) == pytest.approx(losses(outs[0]), rel=2e-3)


@pytest.mark.parametrize(("ranks", "strategy"), [(1, "single"), (2, "ddp"), (2, "zero2")])
def test_a_gradient_that_is_not_finite_is_passed_over(
    server: ForkServer, data: str, tmp_path: Path, ranks: int, strategy: str
) -> None:
    method = {"nan_steps": [2, 9]}
    out = trained(server, tmp_path / "run", data, ranks, method, strategy=strategy, micro_batch=3)
    values = [row["values"] for row in lines(out) if row["split"] == "train"]
    assert [i for i, v in enumerate(values) if v["loss"] is None] == [2, 9]
    assert [i for i, v in enumerate(values) if v["grad_norm"] is None] == [2, 9]
    weights = load_file(newest(out) / "weights.safetensors")
    assert all(bool(t.isfinite().all()) for t in weights.values())


def test_only_a_piece_is_moved_at_once(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, moved = Batch.to, set()

    def to(self: Batch, *args: Any, **kwargs: Any) -> Batch:
        moved.add((len(self), bool(self.x)))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Batch, "to", to)
    train(plan_of(tmp_path / "run", data, micro_batch=7, max_steps=1))
    assert moved == {(7, True), (2, True), (16, False)}


def peak(data: str, out: Path, batch: int, rows: int) -> int:
    """Bytes that the second step of a run holds at most, beyond what was there before."""
    original, peaks = Engine._step, []

    def stepping(self: Engine, *args: Any) -> Any:
        with Held() as held:
            result = original(self, *args)
        peaks.append(held.peak)
        return result

    engine = {**ENGINE, "max_steps": 2, "micro_batch": rows, "ema": 0.0}
    method, stream = {"width": 8192, "dropout": 0.1}, {"batch": batch}
    sections = {"data": data, "engine": engine, "method": method, "stream": stream}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_step", stepping)
        train(whole_plan(out, sections))
    return peaks[1]


def test_memory_is_that_of_a_piece(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", 1024)
    small, large = (peak(data, tmp_path / f"{b}", b, 16) for b in (64, 512))
    at_once = peak(data, tmp_path / "at-once", 512, 0)
    assert large < 1.5 * small
    assert at_once > 6 * large


@pytest.mark.parametrize(
    ("method", "engine", "message"),
    [
        ({"norm": True}, {}, r"BatchNorm1d \('norm'\).*engine\.micro_batch to 0"),
        ({}, {"accumulate": 2}, r"engine\.accumulate=2.*set engine\.accumulate to 1"),
        ({}, {"compile": True}, r"engine\.compile to false"),
    ],
)
def test_what_would_not_be_exact_is_refused(
    data: str, tmp_path: Path, method: dict[str, Any], engine: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(plan_of(tmp_path / "run", data, method, micro_batch=4, **engine))


def test_a_method_of_single_rows_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine\.micro_batch.*'probe'.*engine\.accumulate"):
        train(tiny_plan(tmp_path / "run", data, {"micro_batch": 4}))
