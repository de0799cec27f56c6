"""The learned inverse temperature at its bound."""

from __future__ import annotations

import math

import pytest
import torch

from outmodal.errors import UserError
from outmodal.models.objectives.scale import Scale


@pytest.mark.parametrize("largest", [20.0, 50.0, 100.0, 1e6])
def test_starting_at_the_bound_it_can_be_learned(largest: float) -> None:
    scale = Scale(1.0 / largest, learned=True, largest=largest)
    value = scale()
    assert isinstance(value, torch.Tensor)
    value.backward()
    assert float(value.detach()) == pytest.approx(largest, rel=1e-5)
    assert scale.log_scale is not None
    assert scale.log_scale.grad is not None
    assert float(scale.log_scale.grad) == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_it_stays_at_the_bound_while_pushed_and_comes_back(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    scale = Scale(0.02, learned=True, largest=100.0)
    steps = optimizer(scale.parameters(), lr=0.02)  # type: ignore[call-arg]
    seen = []
    for i in range(400):
        value = scale()
        assert isinstance(value, torch.Tensor)
        seen.append(float(value.detach()))
        steps.zero_grad()
        (value.log() * (-1 if i < 200 else 1)).backward()
        steps.step()
    assert max(seen) <= 100.0 * (1 + 1e-5)
    assert min(seen[120:200]) > 80.0
    assert seen[-1] < 50.0


def test_a_start_beyond_the_bound_is_refused() -> None:
    with pytest.raises(UserError, match=r"temperature 0\.005 is a scale of 200.*largest_scale"):
        Scale(0.005, learned=True, largest=100.0)
    assert Scale(0.005, learned=False, largest=100.0)() == 200.0


def test_it_is_an_exponential() -> None:
    scale = Scale(0.5, learned=True, largest=100.0).double()
    assert scale.log_scale is not None
    assert float(scale.log_scale.detach()) == pytest.approx(math.log(2.0))
