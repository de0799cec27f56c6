"""Aligned: zero-shot by prompts as a method without steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from outmodal.data.batch import StreamSpec
from outmodal.errors import UserError
from outmodal.models.perceptors import HubPerceptor
from outmodal.train.methods import AlignedConfig, aligned, build_method
from outmodal.train.methods.aligned import Aligned
from outmodal.train.methods.base import Context
from tests.train.methods.fakes import CLASSES, Passes, World, make_context, make_world

PROMPTS = HubPerceptor(modality="text", path="somewhere")


@pytest.fixture(autouse=True)
def sentences(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Vectors of sentences: a direction for each class letter, bent by the template."""
    seen: list[str] = []

    def encode(config: Any, given: list[str]) -> Tensor:
        seen[:] = given
        rows = torch.zeros(len(given), 12)
        for row, sentence in zip(rows, given, strict=True):
            row[CLASSES.index(sentence[-1])] = 3.0
            row[6] = float(len(sentence))
        return rows

    monkeypatch.setattr(aligned, "encode_guide", encode)
    return seen


def near(world: World, noise: float) -> None:
    """Let "image" be what a dual encoder would make of the class names."""
    g = torch.Generator().manual_seed(0)
    for split, labels in world.labels.items():
        x = torch.zeros(len(labels), 12)
        x[torch.arange(len(labels)), torch.from_numpy(labels)] = 1.0
        world.x[split]["image"] = x + noise * torch.randn(x.shape, generator=g)


def built(context: Context | None = None, **keys: Any) -> Aligned:
    given = {"unknown": "image", "prompts": PROMPTS, "templates": ("a {}", "the {}"), **keys}
    method = build_method(AlignedConfig(**given), context or make_context(make_world()))
    assert isinstance(method, Aligned)
    return method


def test_a_class_is_the_mean_of_its_prompts_unit_vectors(sentences: list[str]) -> None:
    table = built().classifier.weight.detach()
    assert sentences == [f"{word} {name}" for name in CLASSES for word in ("a", "the")]
    for c in range(4):
        rows = torch.zeros(2, 12)
        rows[:, c] = 3.0
        rows[:, 6] = torch.tensor([3.0, 5.0])
        mean = torch.nn.functional.normalize(rows, dim=1).mean(dim=0)
        assert torch.allclose(table[c], mean / mean.norm(), atol=1e-6)


def test_it_evaluates_without_steps() -> None:
    world = make_world()
    near(world, 0.05)
    method = built(make_context(world))
    assert method.steps_per_epoch() == 0
    assert sum(stage.epochs for stage in method.stages()) == method.context.epochs
    assert method.evaluate(Passes(world, method)) == {"top1": 1.0, "top5": 1.0}
    with pytest.raises(RuntimeError, match="no training steps"):
        method({}, "untrained", 0)


def test_it_is_exact_cosine_and_leaves_out_samples_without_the_modality() -> None:
    world = make_world()
    near(world, 1.0)
    method = built(make_context(world))
    truth = torch.from_numpy(world.labels["test"])
    x = world.x["test"]["image"]
    cosine = torch.nn.functional.cosine_similarity(
        x[:, None], method.classifier.weight[None], dim=2
    )
    hits = cosine.argmax(dim=1) == truth
    found = method.evaluate(Passes(world, method))
    assert found["top1"] == pytest.approx(hits.float().mean().item())
    world.absent["test"]["image"] = torch.nonzero(~hits).flatten().tolist()
    assert method.evaluate(Passes(world, method))["top1"] == 1.0


def test_outputs_of_a_pass() -> None:
    world = make_world()
    method = built(make_context(world))
    batch = world.batch(StreamSpec("some", "test", ("image",), 8), np.arange(8))
    assert torch.equal(method.infer("embedding:image", batch)["embedding"], batch.x["image"])
    assert method.infer("logits", batch)["logits"].shape == (8, 4)
    with pytest.raises(UserError, match="no encoder of 'touch', only of 'image'"):
        method.infer("embedding:touch", batch)
    with pytest.raises(UserError, match="trained nothing to export"):
        method.export_parts(None)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"'imge', which is no vector modality.*'image'.*embed"):
        built(unknown="imge")
    with pytest.raises(UserError, match="'touch', which is no vector modality"):
        built(unknown="touch")  # it has a learner here, and no features
    with pytest.raises(UserError, match=r"needs method\.prompts: the text encoder"):
        built(prompts=None)
    with pytest.raises(UserError, match=r"has 9 numbers and the text encoder .* gives 12"):
        built(make_context(make_world({"image": 9})))
    with pytest.raises(UserError, match="the data set has 1 class"):
        built(replace(make_context(make_world()), classes=("a",)))


def test_a_folder_without_weights_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    lacking = HubPerceptor(modality="text", path=str(tmp_path / "none"))
    with pytest.raises(UserError, match="none"):
        built(prompts=lacking)
