"""The recipes of synergy on ImageNet-1K: their models' sizes, their presets, and a step of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outmodal.data.draws import Draw
from outmodal.data.mixing import Mixer
from outmodal.launch.cli import main
from outmodal.launch.config import RunConfig, load_config
from outmodal.launch.plan.subject import Described, Subject
from outmodal.train.methods import Synergy
from outmodal.train.methods.base import Context
from outmodal.train.methods.synergy_config import SynergyConfig
from tests.data.tiny import make_tiny
from tests.models.hub_models import bert

PUBLISHED = {
    "synergy-resnet50": (25_557_032, 2048),
    "synergy-vit-b32": (88_224_232, 768),
    "synergy-vit-b16": (86_567_656, 768),
    "synergy-vit-l16": (304_326_632, 1024),
}
"""Parameters with a linear classifier of 1,000 classes (25.6, 88.2, 86.6 and 304 million), and the
size of the representation."""

BOTH = [name + end for name in PUBLISHED for end in ("", "-augreg")]
SMALLER = {
    "resnet": ["--learners.0.depth", "micro"],
    "vit": ["--learners.0.size", "micro", "--learners.0.patch", "8"],
}


def smaller(name: str, *more: str) -> list[str]:
    """Keys that make a recipe small enough for a test."""
    kind = "resnet" if "resnet" in name else "vit"
    keys = [*SMALLER[kind], "--learners.0.input.size", "16", "16", "--data.batch", "8"]
    return [*keys, "--engine.precision", "fp32", *more]


@pytest.mark.parametrize("name", BOTH)
def test_a_model_has_as_many_parameters_as_published(name: str) -> None:
    config = load_config(name)
    assert isinstance(config.method, SynergyConfig)
    labels = np.arange(1000)
    with torch.device("meta"):
        learner = config.learners[0].build()
    context = Context(
        seed=0,
        batch=config.data.batch,
        classes=tuple(f"class {i}" for i in range(1000)),
        labels={"train": labels, "val": labels},
        dims={},
        learners={"image": learner},
        train_split="train",
        eval_split=config.data.eval_split,
        epochs=config.engine.epochs,
    )
    method = config.method.imagined(1000).build(context)
    count, size = PUBLISHED[name.removesuffix("-augreg")]
    assert parameters(learner) + (size + 1) * 1000 == count
    norm = 2 * 1024 if "vit" in name else 0
    assert parameters(method.projection) == (size + 1) * 1024 + norm
    assert parameters(method) == count - (size + 1) * 1000 + (size + 1) * 1024 + norm + 1025 * 1000


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", BOTH)
def test_presets_are_what_they_are_named_after(name: str) -> None:
    config = load_config(name)
    method, optim, engine = config.method, config.optim, config.engine
    assert isinstance(method, SynergyConfig)
    assert (config.data.batch, method.alpha, method.fidelity) == (1024, 0.5, "code")
    assert (optim.name, optim.lr, optim.decay) == ("adamw", 1e-3, "matrices")
    assert (engine.precision, engine.clip) == ("bf16", 1.0)
    augment = {step.name: step for step in config.learners[0].input.augment}
    rand = augment["rand_augment"]
    assert method.mixing is not None
    found = (rand.n, rand.magnitude, rand.increasing, "erasing" in augment, method.smoothing)
    mixed = (method.mixing.mixup, method.mixing.cutmix)
    if name.endswith("-augreg"):
        assert (found, mixed) == ((2, 15, False, False, 0.0), (0.5, 0.0))
        assert optim.lr * optim.weight_decay == pytest.approx(1e-4)
        assert (optim.warmup_steps, engine.ema, engine.epochs) == (10_000, 0.0, 300)
        assert drop_path(config) == 0
        return
    assert (found, mixed) == ((2, 9, True, True, 0.1), (0.8, 1.0))
    assert (optim.weight_decay, optim.warmup_epochs, optim.warmup_lr) == (0.05, 20, 1e-6)
    assert (engine.ema, optim.cooldown_epochs, engine.epochs) == (0.99992, 10, 310)
    assert drop_path(config) == 0.25


def drop_path(config: RunConfig) -> float:
    return float(config.learners[0].drop_path)


@pytest.mark.parametrize("name", BOTH)
def test_a_step_with_mixing_reaches_every_parameter(name: str) -> None:
    config = load_config(name, smaller(name))
    subject = Subject(config, Described(64, 10, 1000.0, {}))
    method = subject.method
    assert isinstance(method, Synergy)
    _, batches = next(subject.batches(8))
    (spec,) = method.streams("train")
    assert spec.mixing is not None
    mixer = Mixer(spec.mixing, Draw(0, 0, spec.name))
    batch = replace(batches["train"], mixer=mixer).to(torch.device("cpu"))
    method.train()
    out = method({"train": batch}, "train", 0)
    out.loss.backward()
    assert batch.mixed is not None
    assert bool((batch.mixed.share < 1).any())
    assert bool(torch.isfinite(out.loss.detach()))
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["synergy-vit-b16", "synergy-resnet50-augreg"])
def test_a_recipe_trains_on_shards(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    data = make_tiny(tmp_path / "data", 32, 2, ("image",), test=8)
    keys: dict[str, Any] = {
        "--data.path": data.root,
        "--data.eval_split": "test",
        "--data.streams": 2,
        "--method.helper.path": bert(tmp_path / "bert"),
        "--engine.max_steps": 2,
        "--engine.accumulate": 2,
        "--engine.threads": 1,
        "--engine.device": "cpu",
        "--out": tmp_path / "run",
    }
    words = [str(word) for pair in keys.items() for word in pair]
    assert main(["train", name, *smaller(name), *words, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert answer["steps"] == 2
    assert 0 <= answer["metrics"]["top1"] <= 1
