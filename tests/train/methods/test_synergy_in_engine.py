"""Synergy in the real engine: alpha 0 is plain training, every strategy agrees, a stopped run goes
on as it was, an export is what its card says, and every direction's recipe trains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from outmodal.data.batch import Batch
from outmodal.data.inputs import ImageInput
from outmodal.data.stream import Loader
from outmodal.launch.cli import main as cli
from outmodal.launch.config import load_config
from outmodal.launch.plan.subject import Described, Subject
from outmodal.models.card import CardInfo
from outmodal.models.learners import ViTLearner
from outmodal.models.reload_check import reload_check
from outmodal.train.exporting import export_run
from outmodal.train.methods import SynergyConfig
from outmodal.train.run import RunPlan, make_method, restore_method, train
from tests.data.tiny import make_tiny
from tests.models.hub_models import bert, resnet, wav2vec2
from tests.train.forked import ForkServer
from tests.train.methods.engine_job import plan
from tests.train.plans import lines, losses, newest

NOISE = {"name": "synergy", "unknown": "force", "targets": "gaussian", "dim": 9}
METHODS: dict[str, dict[str, Any]] = {
    "samples": {"name": "synergy", "unknown": "force", "targets": "samples", "guide": "pose"},
    "paired": {
        **{"name": "synergy", "unknown": "force", "level": 3, "guide": "pose", "alpha": 0.3},
        "mixing": {"mixup": 0.8},
    },
    "kept": {
        **{**NOISE, "target_assign": "per_sample", "label_fraction": 0.5},
        "mixing": {"mixup": 0.8, "p": 0.7},
    },
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set with `force` to learn and `pose` to guide; some samples lack one."""
    missing = {"force": range(0, 96, 11), "pose": range(5, 96, 13)}
    root = tmp_path_factory.mktemp("pairs") / "tiny"
    return str(make_tiny(root, 96, 4, ("force", "pose"), test=20, missing=missing).root)


def job(out: Path, data: str, method: Mapping[str, Any], **engine: Any) -> dict[str, Any]:
    sections = {"method": dict(method), "engine": {"epochs": 2, "eval_every": 1, **engine}}
    call = "tests.train.methods.engine_job:main"
    return {"call": call, "out": str(out), "data": data, **sections}


@pytest.fixture(scope="module")
def alone(
    server: ForkServer, pairs: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Runs in one process, which the others are compared with."""
    root = tmp_path_factory.mktemp("alone")
    for name, method in METHODS.items():
        server.run(job(root / name, pairs, method), 1, root / "log")
    return {name: root / name for name in METHODS}


def test_terms_and_diagnostics_are_logged(alone: dict[str, Path]) -> None:
    for name, out in alone.items():
        rows = lines(out)
        terms = [r["values"] for r in rows if r["split"] == "train"]
        assert {"loss/supervised", "loss/latent"} <= set(terms[0])
        guided = name != "kept"
        assert ("targets/missing" in terms[0]) == guided
        epochs = [r["values"] for r in rows if r["split"] == "epoch"]
        assert epochs == ([{"targets/share": pytest.approx(89 / 96)}] if guided else [])
        found = [r["values"] for r in rows if r["split"] == "diagnostics"]
        assert len(found) == 2
        assert all({"latent/loss", "latent/w2", "latent/sliced_w2"} == set(f) for f in found)


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
@pytest.mark.parametrize("name", list(METHODS))
def test_two_ranks_train_as_one(
    server: ForkServer,
    pairs: str,
    tmp_path: Path,
    alone: dict[str, Path],
    name: str,
    strategy: str,
) -> None:
    request = job(tmp_path / "run", pairs, METHODS[name], strategy=strategy)
    server.run({**request, "persistent_below": 20}, 2, tmp_path / "log")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone[name]), abs=1e-5)
    assert len(losses(alone[name])) == 12


@pytest.mark.parametrize("name", ["samples", "kept"])
def test_a_stopped_run_goes_on_bit_for_bit(
    server: ForkServer, pairs: str, tmp_path: Path, alone: dict[str, Path], name: str
) -> None:
    request = job(tmp_path / "run", pairs, METHODS[name])
    codes = server.wait(server.start({**request, "stop_at": 8}, 1, tmp_path / "log"))
    assert codes == [75]
    server.run(request, 1, tmp_path / "log")
    assert losses(tmp_path / "run") == losses(alone[name])
    mine, theirs = (
        load_file(newest(p) / "weights.safetensors") for p in (tmp_path / "run", alone[name])
    )
    assert all(torch.equal(t, theirs[key]) for key, t in mine.items())


def cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[B] by hand, with the shares of the two labels of a mixed row."""
    own = F.cross_entropy(logits, batch.label, reduction="none")
    if batch.mixed is None:
        return own
    other = F.cross_entropy(logits, batch.mixed.label, reduction="none")
    return batch.mixed.share * own + (1 - batch.mixed.share) * other


@pytest.mark.parametrize("method", [NOISE, METHODS["samples"], METHODS["paired"]])
def test_alpha_0_in_the_engine_is_a_hand_written_loop_bit_for_bit(
    pairs: str, tmp_path: Path, method: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    wanted = plan(job(tmp_path / "run", pairs, {**method, "alpha": 0.0}, clip=0.0))
    wanted = replace(wanted, optim=wanted.optim.model_copy(update={"schedule": "constant"}))
    train(wanted)
    trained, transforms, dataset = restore_method(wanted)
    fresh = make_method(wanted, dataset, transforms)
    model = torch.nn.Sequential(fresh.learner, fresh.projection, fresh.classifier)
    optim = wanted.optim
    optimizer = torch.optim.Adam(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    config = wanted.data.model_copy(update={"streams": 4})
    with Loader(dataset, transforms, config) as loader:
        for epoch in range(2):
            specs = list(fresh.streams("train"))
            assert [s.modalities for s in specs] == [("force",)]
            for batches in loader.open_epoch(specs, seed=0, epoch=epoch, start_step=0, steps=6):
                batch = batches["train"].to(torch.device("cpu"))
                rows = batch.present["force"]
                optimizer.zero_grad()
                losses = cross_entropy(model(batch.x["force"]), batch)
                losses[rows].mean().backward()
                optimizer.step()
    held = dict(trained.named_parameters())
    for name, p in fresh.named_parameters():
        assert torch.equal(p, held[name]), name


@pytest.mark.long
@pytest.mark.parametrize("latent_map", ["linear_ln", "side"])
def test_an_export_loads_without_outmodal_as_its_card_says(
    tmp_path: Path, latent_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(make_tiny(tmp_path / "data", 48, 4, ("image",), test=12).root)
    base = plan(job(tmp_path / "run", data, NOISE, epochs=1))
    learner = ViTLearner(
        modality="image",
        input=ImageInput(size=(12, 12), channels=1),
        patch=4,
        size="custom",
        width=32,
        depth=1,
        heads=2,
    )
    method = SynergyConfig(unknown="image", targets="gaussian", dim=9, latent_map=latent_map)
    wanted: RunPlan = replace(base, learners=(learner,), method=method)
    train(wanted)
    card = CardInfo(name="run", method="synergy", data="tiny", command="outmodal train")
    graphs = ("onnx",) if latent_map == "linear_ln" else ()
    folder = export_run(wanted, tmp_path / "out", card, graphs=graphs)  # type: ignore[arg-type]
    assert reload_check(folder) <= 1e-5
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(compile(found[1], "README.md", "exec"), scope)
    check = load_file(folder / "check.safetensors")
    torch.testing.assert_close(scope["logits"], check["logits"], rtol=1e-4, atol=1e-4)
    assert check["embedding"].shape[1] == (32 if latent_map == "side" else 9)
    if graphs:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        _, e = session.run(None, {"x": check["inputs"].numpy()})
        torch.testing.assert_close(torch.from_numpy(e), check["embedding"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("targets", ["text", "gaussian"])
def test_a_recipe_is_planned_without_data_and_helper(targets: str) -> None:
    config = load_config("fashion-synergy", ["--method.targets", targets])
    subject = Subject(config, Described(60000, 10, 1000.0, {}))
    sizes = {name: tuple(p.shape) for name, p in subject.method.named_parameters()}
    assert sizes["projection.layers.0.weight"] == (1024, 128)
    assert sizes["classifier.weight"] == (10, 1024)


@pytest.mark.parametrize(
    "name",
    ["fashion-synergy-l2a", "fashion-synergy-v2a", "fashion-synergy-a2v", "fashion-synergy-a2l"],
)
def test_the_recipes_of_the_other_directions_train(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = make_tiny(tmp_path / "data", 32, 4, ("image", "speech", "text"), test=8)
    kinds = {"l2a": bert, "v2a": resnet, "a2v": wav2vec2, "a2l": wav2vec2}
    helper = kinds[name[-3:]](tmp_path / "helper")
    key = "method.helper.path" if name.endswith("l2a") else "perceptors.0.path"
    small = ("--data.batch", "16", "--data.streams", "4", "--engine.threads", "1")
    words = [f"--{key}", str(helper), "--data.path", str(data.root), *small, "--engine.epochs", "1"]
    out = tmp_path / "run"
    assert cli(["train", name, "--out", str(out), "--engine.device", "cpu", *words]) == 0
    last = [r["values"] for r in lines(out) if r["split"] == "diagnostics"][-1]
    assert {"latent/loss", "latent/w2", "latent/sliced_w2"} == set(last)
    terms = [r["values"] for r in lines(out) if r["split"] == "train"]
    assert all("loss/latent" in t for t in terms)
