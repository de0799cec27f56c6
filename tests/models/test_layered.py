"""The text encoder in stages gives what it gives at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from outmodal.data.inputs import TokenInput
from outmodal.models.learners import Learner, TextLearner
from outmodal.models.learners.layered import Layered


def encoder(**keys: Any) -> Learner:
    torch.manual_seed(0)
    config = TextLearner(
        modality="text",
        input=TokenInput(length=10, vocab_size=60),
        size="custom",
        width=16,
        depth=3,
        heads=2,
        **keys,
    )
    return config.build()


TOKENS = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0], [0] * 6, [2, 5, 6, 7, 8, 3]])


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_stages_give_the_forward(pool: str, attention: str, cut: int) -> None:
    learner = encoder(pool=pool, attention=attention).double()
    assert isinstance(learner, Layered)
    hidden, mask = learner.first(TOKENS)
    hidden = learner.onward(hidden, mask, 0, cut)
    hidden = learner.onward(hidden, mask, cut, learner.depth)
    assert torch.allclose(learner.pooled(hidden, mask), learner(TOKENS), atol=1e-12)


def test_the_stages_reach_every_weight() -> None:
    learner = encoder(pool="mean")
    assert isinstance(learner, Layered)
    hidden, mask = learner.first(TOKENS)
    learner.pooled(learner.onward(hidden, mask, 0, 3), mask).square().sum().backward()
    assert all(p.grad is not None for p in learner.parameters())


def test_padding_does_not_count() -> None:
    learner = encoder(pool="mean")
    longer = torch.cat([TOKENS, torch.zeros(4, 3, dtype=torch.int64)], dim=1)
    assert torch.allclose(learner(longer), learner(TOKENS), atol=1e-6)
