"""SigLIP against its formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from outmodal.models.objectives import SigLipConfig
from tests.models.objectives.plain import agree, by_formula, gaps, gradients, take, units


def siglip(batch: dict[str, torch.Tensor], scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.combinations(batch.values(), 2):
        sign = 2 * torch.eye(len(a), dtype=torch.float64) - 1
        total = total - F.logsigmoid(sign * (scale * a @ b.T + bias)).sum(1).mean()
    return total


@pytest.mark.parametrize("count", [2, 3])
def test_is_the_sum_over_pairs_of_the_sigmoid_loss(count: int) -> None:
    batch = units(count)
    objective = SigLipConfig(bias=-3.0, learn_temperature=False).build(tuple(batch), 5)
    bias = torch.tensor(-3.0, dtype=torch.float64)
    expected = by_formula(batch, lambda b: siglip(b, objective.scale(), bias))
    agree(gradients(objective, batch), expected, rtol=1e-9, atol=1e-10)


def test_scale_and_bias_are_learned() -> None:
    batch = units(3)
    objective = SigLipConfig().build(tuple(batch), 5)
    log_scale = torch.tensor(10.0, dtype=torch.float64).log().requires_grad_()
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(siglip(batch, log_scale.exp(), bias), (log_scale, bias))
    got = gradients(objective, batch)
    torch.testing.assert_close(got["scale.log_scale"].double()[0], expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(got["bias"].double()[0], expected[1], rtol=1e-4, atol=0)
    assert objective(batch).logs["logit_bias"].item() == -10.0


def test_missing_samples_are_neither_positive_nor_negative() -> None:
    batch = units(2, 12)
    present = gaps(tuple(batch), 12)
    objective = SigLipConfig(learn_temperature=False).build(tuple(batch), 5)
    both = present["sight"] & present["sound"]
    expected = objective(take(batch, both)).loss
    torch.testing.assert_close(objective(batch, present).loss, expected)
