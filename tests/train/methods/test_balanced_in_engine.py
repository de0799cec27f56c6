"""InfoBridge and its comparators in the real engine: strategies agree, every stage goes on as it
was, and what cannot be trained is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.methods.balanced_job import EDITING, EPOCHS, METHODS, STEPS
from tests.train.methods.test_in_engine import job
from tests.train.plans import lines, losses, newest

CALL = "tests.train.methods.balanced_job:main"
ALL = [*METHODS, *EDITING]
TWO = {
    "ddp": [*EDITING, "infobridge"],
    "zero1": [*EDITING, "diagnose_relearn"],
    "zero2": list(METHODS),
}
"""Strategy -> methods that are trained so in two processes. All others: test_ranks.py."""


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


@pytest.fixture(scope="module", params=list(TWO))
def other(
    request: pytest.FixtureRequest,
    server: ForkServer,
    pairs: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Every method that it may train in two processes."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    return run(server, out, pairs, 2, {"only": TWO[request.param]}, strategy=request.param)


@pytest.fixture(scope="module", params=[7, pytest.param(14, marks=pytest.mark.long)])
def stopped(
    request: pytest.FixtureRequest,
    server: ForkServer,
    pairs: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Every method, stopped within an epoch and gone on with."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    return run(server, out, pairs, 1, {"stop_at": request.param})


def same_weights(mine: Path, theirs: Path, atol: float) -> bool:
    found, wanted = (load_file(newest(p) / "weights.safetensors") for p in (mine, theirs))
    return all(torch.allclose(found[n], t, atol=atol, rtol=0) for n, t in wanted.items())


@pytest.mark.parametrize("name", ALL)
def test_ranks_and_strategies_agree(alone: Path, other: Path, name: str) -> None:
    if not (other / name).exists():  # not asked of this strategy
        return
    expected = losses(alone / name)
    assert len(expected) == EPOCHS * STEPS * (2 if name.endswith("alternate") else 1)
    assert losses(other / name) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert same_weights(other / name, alone / name, 5e-5)
    mine, theirs = (newest(p / name) / "method.safetensors" for p in (other, alone))
    if theirs.exists():
        kept = load_file(mine)
        for key, t in load_file(theirs).items():
            exact = not t.is_floating_point()
            assert torch.equal(kept[key], t) if exact else torch.allclose(kept[key], t, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_a_stopped_run_goes_on_as_it_was(alone: Path, stopped: Path, name: str) -> None:
    assert losses(stopped / name) == losses(alone / name)
    assert same_weights(stopped / name, alone / name, 0.0)


@pytest.mark.long
def test_every_turn_of_boosting_goes_on(
    server: ForkServer, pairs: str, tmp_path: Path, alone: Path
) -> None:
    stages = [r["stage"] for r in lines(alone / "reconboost") if r["split"] == "train"]
    assert stages[::STEPS] == ["start", "turn:force", "together", "turn:pose"]
    for step in (2, 10):
        more = {"stop_at": step, "only": ["reconboost"]}
        out = run(server, tmp_path / f"{step}", pairs, 1, more)
        assert losses(out / "reconboost") == losses(alone / "reconboost")
        assert same_weights(out / "reconboost", alone / "reconboost", 0.0)


def test_records_say_what_a_method_did(alone: Path) -> None:
    rows = {n: [r["values"] for r in lines(alone / n) if r["split"] == "train"] for n in ALL}
    wanted = {"loss/task", "loss/nce", "mi_lb", "negatives_any_T", "negatives_again"}
    assert wanted <= set(rows["infobridge"][-1])
    assert {"loss/task", "loss/contrast"} <= set(rows["infonce"][0])
    assert "ratio/force" in rows["ogm_ge"][STEPS]
    assert "ratio/force" not in rows["ogm_ge"][0]
    assert "loss/prototypes_pose" in rows["pmr"][0]
    assert len(rows["pmr"][-1]) < len(rows["pmr"][0])
    epochs = [r["values"] for r in lines(alone / "diagnose_relearn") if r["split"] == "epoch"]
    assert [("alpha/pose" in e) for e in epochs] == [True] * (EPOCHS - 1)
    final = [r["values"] for r in lines(alone / "infobridge") if r["split"] == "eval"][-1]
    assert {"top1", "miss_force/top1", "average/top1"} <= set(final)


def test_only_one_modality_learns_in_its_turn(server: ForkServer, pairs: str, alone: Path) -> None:
    rows = [r["values"] for r in lines(alone / "reconboost") if r["split"] == "train"]
    assert {"loss/task_force", "loss/task_pose"} <= set(rows[0])
    assert "loss/turn" in rows[STEPS]
    assert "loss/task" in rows[2 * STEPS]


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
