"""Copies that follow their originals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from outmodal.errors import UserError
from outmodal.train.momentum import Momentum


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def walk(module: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape, generator=g)


def test_a_copy_is_the_running_mean() -> None:
    module = network()
    momentum, exact = Momentum({"f": module}, 0.9), {}
    momentum.follow()
    for name, p in module.named_parameters():
        exact[name] = p.detach().double().clone()
    for step in range(5):
        walk(module, step)
        momentum.follow()
        for name, p in module.named_parameters():
            exact[name] = 0.9 * exact[name] + 0.1 * p.detach().double()
    for name, p in momentum["f"].named_parameters():
        assert torch.allclose(p.double(), exact[name], atol=1e-6)
        assert not p.requires_grad


def test_the_first_follow_is_the_original_itself() -> None:
    module = network()
    momentum = Momentum({"f": module}, 0.999)
    walk(module, 0)
    momentum.follow()
    assert all(
        torch.equal(a, b)
        for a, b in zip(momentum["f"].parameters(), module.parameters(), strict=True)
    )


def test_two_halves_of_a_step_move_as_far_as_a_whole() -> None:
    module = network()
    whole, halves = (Momentum({"f": module}, 0.9) for _ in range(2))
    for one in (whole, halves):
        one.follow()
    walk(module, 0)
    whole.follow()
    halves.follow(0.5)
    halves.follow(0.5)
    for a, b in zip(whole["f"].parameters(), halves["f"].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_rows_do_not_see_each_other_and_statistics_are_the_originals() -> None:
    module = network()
    momentum = Momentum({"f": module}, 0.9)
    x = torch.randn(8, 3)
    module(x)
    momentum.follow()
    module.eval()
    assert torch.equal(momentum["f"](x[:1]), module(x[:1]))
    module.train()


def test_its_state_restores_it_bit_for_bit() -> None:
    module = network()
    momentum, other = (Momentum({"f": module}, 0.9) for _ in range(2))
    assert momentum.state() == {}
    for step in range(3):
        walk(module, step)
        momentum.follow()
    other.load({k: t.clone() for k, t in momentum.state().items()})
    for one in (momentum, other):
        one.follow()
    assert momentum.state().keys() == other.state().keys()
    assert all(torch.equal(t, other.state()[k]) for k, t in momentum.state().items())


def test_it_is_no_part_of_a_module_that_holds_it_and_copies_with_it() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = network()
            self.momentum = Momentum({"f": self.f}, 0.5)

    holder = Holder()
    assert len(list(holder.parameters())) == len(list(holder.f.parameters()))
    twin = copy.deepcopy(holder)
    twin.momentum.follow()
    walk(twin.f, 0)
    twin.momentum.follow()
    assert not torch.equal(next(twin.momentum["f"].parameters()), next(holder.f.parameters()))


def test_weights_that_are_cut_over_ranks_are_refused() -> None:
    module = nn.Linear(3, 2)
    momentum = Momentum({"f": module}, 0.5)
    module.weight = nn.Parameter(torch.empty(0))
    with pytest.raises(UserError, match=r"zero3.*choose engine\.strategy zero2"):
        momentum.follow()
