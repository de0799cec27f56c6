"""Every method in the real engine: two ranks have the losses, gradients and memories of one, also
where one of them has nothing of a subset, and a run goes on bit for bit from every stage.

The table of which test proves it for which method is `every_job.CASES`: a method that trains and is
not in it fails here. Gradients of single batches with whole subsets on one rank: test_ranks.py and
test_viewed_ranks.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from outmodal.train.methods import AnyMethodConfig
from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.methods.every_job import CASES, STEPS, THREE, UNTRAINED
from tests.train.plans import lines, losses, newest

CALL = "tests.train.methods.every_job:main"
REMEMBERING = {
    *("cox", "cox_unsup", "moco", "moco_unsup", "moco_cox", "moco_cox_unsup", "freematch"),
    *("mixtext", "ume_mma", "ume_mma_frozen", "missing_detection", "pmr", "diagnose_relearn"),
    *("infobridge", "infobridge_cluster", "infobridge_alternate"),
}
"""Cases with a state beside the weights."""
EDITING = ("ogm_ge", "mmpareto")
WHOLE = ("cox_unsup",)
"""Its streams select rows that have what it needs; for empty ones see test_ranks.py."""


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of 48 samples ten have all of `force`, `text` and `pose`, and the others one of them."""
    held = {"force": (0, 3, 7), "text": (0, 4, 7), "pose": (0, 1, 2, 5, 6, 7, 8, 9)}
    missing = {m: [i for i in range(48) if i % 10 not in kept] for m, kept in held.items()}
    root = tmp_path_factory.mktemp("rare") / "tiny"
    return str(make_tiny(root, 48, 4, tuple(missing), test=12, missing=missing).root)


def run(server: ForkServer, out: Path, data: str, ranks: int = 1, **more: Any) -> Path:
    server.run(
        {"call": CALL, "out": str(out), "data": data, **more}, ranks, out.with_suffix(".log")
    )
    return out


@pytest.fixture(scope="module")
def alone(server: ForkServer, rare: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process."""
    return run(server, tmp_path_factory.mktemp("alone") / "run", rare)


@pytest.fixture(scope="module", params=["ddp", pytest.param("zero2", marks=pytest.mark.long)])
def two(
    request: pytest.FixtureRequest,
    server: ForkServer,
    rare: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Every case in two processes."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    return run(server, out, rare, 2, engine={"strategy": request.param})


@pytest.fixture(scope="module", params=["within", "last"])
def stopped(
    request: pytest.FixtureRequest,
    server: ForkServer,
    rare: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Every case, stopped in every epoch, and so in every stage: within it, or at its ends."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    return run(server, out, rare, stops=[3] if request.param == "within" else [1, STEPS])


def seen(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "seen.json").read_text("utf-8"))
    return found


def held(out: Path, part: str) -> dict[str, Tensor]:
    file = newest(out) / f"{part}.safetensors"
    return load_file(file) if file.exists() else {}


def test_every_method_has_a_case() -> None:
    known = {config.model_fields["name"].default for config in get_args(AnyMethodConfig)}
    named = {str(method["name"]) for method, _ in CASES.values()}
    assert known - named == set(UNTRAINED)
    assert named <= known


def test_a_case_has_all_stages_of_its_method(alone: Path) -> None:
    stages = {
        n: list(dict.fromkeys(r["stage"] for r in lines(alone / n) if r["split"] == "train"))
        for n in CASES
    }
    assert stages["ume_mma"] == ["unimodal", "fusion", "complete"]
    assert stages["cox_unsup"] == stages["moco_cox_unsup"] == ["bootstrap", "warmup", "main"]
    assert stages["ogm_ge"] == ["plain", "modulated"]  # and plain again
    assert stages["pmr"] == ["rebalanced", "plain"]
    turns = [f"turn:{m}" for m in ("force", "text", "pose")]
    assert stages["reconboost"] == ["start", turns[0], "together", turns[1], turns[2]]
    assert len(stages["cox"]) == len(stages["moco_cox"]) == 2


@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks_are_one(alone: Path, two: Path, name: str) -> None:
    mine, theirs = two / name, alone / name
    expected = losses(theirs)
    doubled = 2 if name == "infobridge_alternate" else 1
    assert len(expected) == CASES[name][1] * STEPS * doubled
    assert losses(mine) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    found, wanted = (load_file(p / "gradients.safetensors") for p in (mine, theirs))
    assert any(t.any() for t in wanted.values())
    for key in found.keys() | wanted.keys():  # some engines give zeros, others nothing
        one = wanted.get(key, torch.zeros(()))
        other = found.get(key, torch.zeros(()))
        assert float((one - other).abs().max()) <= 1e-5 * max(1.0, float(one.abs().max())), key
    assert seen(mine)["empty"] > 0 or name in WHOLE
    assert seen(mine)["agree"]
    for key, t in held(theirs, "method").items():
        kept = held(mine, "method")[key]
        exact = not t.is_floating_point()
        assert torch.equal(kept, t) if exact else torch.allclose(kept, t, atol=1e-4, equal_nan=True)


@pytest.mark.long
@pytest.mark.parametrize("name", list(CASES))
def test_it_goes_on_bit_for_bit_from_every_stage(alone: Path, stopped: Path, name: str) -> None:
    rows = [r for r in lines(alone / name) if r["split"] == "train"]
    assert set(seen(stopped / name)["stopped"]) == {r["stage"] for r in rows}
    assert losses(stopped / name) == losses(alone / name)
    for part in ("weights", "optimizer", "method"):
        mine, theirs = held(stopped / name, part), held(alone / name, part)
        assert mine.keys() == theirs.keys()
        assert bool(mine) == (part != "method" or name in REMEMBERING)
        for key, t in theirs.items():
            assert t.numpy().tobytes() == mine[key].numpy().tobytes(), (part, key)


@pytest.mark.parametrize("name", list(CASES))
def test_methods_that_change_gradients_are_known(alone: Path, name: str) -> None:
    """The others are trained with ZeRO 2 above; these are refused there, see test_gradients.py."""
    assert seen(alone / name)["edits"] == (name in EDITING)


def test_every_run_is_judged(alone: Path) -> None:
    fused = {"top1", *(f"miss_{m}/top1" for m in THREE), "average/top1"}
    wanted = {n: fused if m.get("modalities") == THREE else {"top1"} for n, (m, _) in CASES.items()}
    wanted["align"] = {"force_to_pose/zero_shot"}
    for name, keys in wanted.items():
        last = [r["values"] for r in lines(alone / name) if r["split"] == "eval"][-1]
        assert keys <= set(last), name


def test_records_say_what_a_method_did(alone: Path) -> None:
    rows = {n: [r["values"] for r in lines(alone / n) if r["split"] == "train"] for n in CASES}
    wanted = {"loss/task", "loss/nce", "mi_lb", "negatives_any_T", "negatives_again"}
    assert wanted | {"mi_lb/text-pose"} <= set(rows["infobridge"][-1])
    assert {"loss/task", "loss/contrast"} <= set(rows["infonce"][0])
    shown = ["ratio/force" in rows["ogm_ge"][STEPS * epoch] for epoch in range(3)]
    assert shown == [False, True, False]
    assert "loss/prototypes_pose" in rows["pmr"][0]
    assert "loss/prototypes_pose" not in rows["pmr"][-1]
    epochs = [r["values"] for r in lines(alone / "diagnose_relearn") if r["split"] == "epoch"]
    assert ["alpha/pose" in e for e in epochs] == [True]  # and nothing of the first epoch
    boosted = rows["reconboost"][::STEPS]
    assert {"loss/task_force", "loss/task_text", "loss/task_pose"} <= set(boosted[0])
    assert "loss/turn" in boosted[1]
    assert "loss/task" in boosted[2]
