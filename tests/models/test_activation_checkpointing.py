"""Activations that are computed again give the same gradients, draws included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from outmodal.errors import UserError
from outmodal.launch.plan.costs import count
from outmodal.models.learners import Learner, LearnerConfig, build_learner

IMAGE = {"name": "image", "size": [16, 16], "channels": 1}
WAVE = {"name": "waveform", "seconds": 0.1, "sample_rate": 8000}
TOKENS = {"name": "tokens", "length": 8, "vocab_size": 32}
SMALL = {"size": "custom", "width": 16, "depth": 2, "heads": 2}


def learner(again: bool, **keys: Any) -> Learner:
    torch.manual_seed(0)
    config: Any = TypeAdapter(LearnerConfig).validate_python({"modality": "m", **keys})
    built = build_learner(config).train()
    if again:
        built.checkpoint_activations()
    return built


def gradients(model: Learner, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("keys", "x"),
    [
        ({"name": "vit", **SMALL, "patch": 4, "drop_path": 0.5, "input": IMAGE},
         torch.randn(4, 1, 16, 16)),
        ({"name": "bert", **SMALL, "input": TOKENS}, torch.randint(1, 32, (4, 8))),
        ({"name": "wav2vec2", **SMALL, "input": WAVE}, torch.randn(4, 800)),
    ],
)  # fmt: skip
def test_same_gradients(keys: dict[str, Any], x: Tensor) -> None:
    plain, again = learner(False, **keys), learner(True, **keys)
    expected, found = gradients(plain, x), gradients(again, x)
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_less_is_kept() -> None:
    keys = {"name": "vit", "size": "custom", "width": 32, "depth": 6, "heads": 2, "patch": 4}
    x = torch.randn(8, 1, 16, 16)
    kept = []
    for again in (False, True):
        model = learner(again, **keys, input=IMAGE)
        costs = count(lambda m=model: m(x).sum(), [*model.parameters(), *model.buffers(), x])
        kept.append(costs.kept)
    assert kept[1] < 0.3 * kept[0]


def test_a_learner_without_blocks_says_so() -> None:
    with pytest.raises(UserError, match=r"activation_checkpointing.*'mlp' for 'm'"):
        learner(True, name="mlp", input={"name": "vector", "dim": 4})
