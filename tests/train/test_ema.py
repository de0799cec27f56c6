"""The average of the weights follows them, and computing with it leaves them as they were."""

from __future__ import annotations

import torch
from torch import nn

from outmodal.train.ema import Ema
from outmodal.train.optim import OptimConfig, trainable
from outmodal.train.state import PlainLayout


def make(decay: float) -> tuple[nn.Linear, PlainLayout, Ema]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    named = trainable(module)
    optimizer = OptimConfig().build([{"name": "all", "params": [p for _, p in named]}])
    layout = PlainLayout(named, optimizer)
    return module, layout, Ema(layout, decay)


def test_average_is_the_recurrence() -> None:
    module, _, ema = make(0.75)
    expected = module.weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            module.weight.add_(float(step))
        ema.update()
        expected = 0.75 * expected + 0.25 * module.weight.detach()
    torch.testing.assert_close(ema.state()["weight"], expected)


def test_swap_is_exact_and_undone_after_an_error() -> None:
    module, _, ema = make(0.5)
    with torch.no_grad():
        module.weight.mul_(1.1)
    ema.update()
    before, average = module.weight.detach().clone(), ema.state()["weight"]
    try:
        with ema.swapped():
            assert torch.equal(module.weight, average)
            raise KeyError("in the middle")
    except KeyError:
        pass
    assert torch.equal(module.weight, before)
    assert torch.equal(ema.state()["weight"], average)


def test_state_comes_back() -> None:
    module, _, ema = make(0.9)
    with torch.no_grad():
        module.weight.add_(1.0)
    ema.update()
    _, _, other = make(0.9)
    other.load(ema.state())
    assert all(torch.equal(t, ema.state()[n]) for n, t in other.state().items())
