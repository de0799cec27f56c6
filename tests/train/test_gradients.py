"""Changing whole gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from outmodal.errors import UserError
from outmodal.train import gather, gradients
from outmodal.train.methods import ErmConfig, MmParetoConfig, OgmGeConfig, build_method
from outmodal.train.methods.base import Method
from outmodal.train.methods.settings import MethodSettings
from outmodal.train.optim import OptimConfig, mark_idle
from outmodal.train.state import FlatLayout, PlainLayout
from tests.train.methods.fakes import make_context, make_world


class Doubling(nn.Module):
    """Doubles one gradient in place, replaces another, and notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(2))
        self.b = nn.Parameter(torch.ones(3))
        self.idle = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[list[str], str, int]] = []

    def edit_gradients(self, held: dict[str, Tensor], stage: str, step: int) -> None:
        self.seen.append((sorted(held), stage, step))
        held["a"].mul_(2)
        held["b"] = held["b"] + 5


def two_groups(method: Doubling) -> torch.optim.Optimizer:
    groups = [{"name": "x", "params": [method.a, method.b]}, {"name": "y", "params": [method.idle]}]
    return OptimConfig(name="sgd").build(groups)


def edit(method: Doubling, layout: PlainLayout | FlatLayout) -> None:
    assert gradients.edits(method)  # type: ignore[arg-type]
    gradients.edit(method, layout, "train", 7)  # type: ignore[arg-type]


def test_plain_gradients_are_changed_in_place_or_replaced() -> None:
    method = Doubling()
    optimizer = two_groups(method)
    layout = PlainLayout(list(method.named_parameters()), optimizer)
    method.a.grad, method.b.grad = torch.full((2,), 3.0), torch.full((3,), 4.0)
    mark_idle(optimizer, [1, 0])
    edit(method, layout)
    assert method.seen == [(["a", "b"], "train", 7)]
    assert method.a.grad.tolist() == [6.0] * 2
    assert method.b.grad.tolist() == [9.0] * 3
    assert method.idle.grad is None


def test_flat_gradients_are_put_together_and_cut_again() -> None:
    """As DeepSpeed's ZeRO 1 holds them on one rank: pieces of a padded flat group."""
    method = Doubling()
    optimizer = two_groups(method)
    mark_idle(optimizer, [1, 0])
    pieces = [torch.full((2,), 3.0), torch.full((3,), 4.0), torch.zeros(3)]
    zero = SimpleNamespace(
        optimizer=optimizer,
        single_partition_of_fp32_groups=[torch.ones(8), torch.ones(4)],
        round_robin_bit16_groups=[[method.a, method.b], [method.idle]],
        round_robin_bit16_offsets=[[0, 2], [0]],
        averaged_gradients={0: pieces, 1: [torch.zeros(4)]},
    )
    edit(method, FlatLayout(list(method.named_parameters()), zero))
    assert method.seen == [(["a", "b"], "train", 7)]
    assert [p.tolist() for p in pieces] == [[6.0] * 2, [9.0] * 3, [0.0] * 3]


def test_methods_that_do_not_change_gradients_are_left_alone() -> None:
    world = make_world(train=40, test=20)
    method = build_method(ErmConfig(unknown="touch"), make_context(world))
    assert not gradients.edits(method)
    for strategy in ("single", "ddp", "zero0", "zero1", "zero2", "zero3"):
        gradients.check_edits(method, strategy)
    assert Method.edit_gradients(method, {}, "train", 0) is None


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
@pytest.mark.parametrize("config", [OgmGeConfig(), MmParetoConfig()])
def test_stages_that_cut_gradients_are_refused(config: MethodSettings, strategy: str) -> None:
    world = make_world(train=40, test=20)
    method = build_method(config, make_context(world, learners=("touch", "image")))
    with pytest.raises(UserError, match=f"engine.strategy {strategy} .* cuts each one over") as e:
        gradients.check_edits(method, strategy)
    assert "set engine.strategy to ddp or zero1" in str(e.value)
    gradients.check_edits(method, "zero1")


def test_noise_has_a_name() -> None:
    like = torch.zeros(1000)
    one = gather.seeded_noise(like, 0, "a", 3)
    assert torch.equal(one, gather.seeded_noise(like, 0, "a", 3))
    assert not torch.equal(one, gather.seeded_noise(like, 0, "a", 4))
    assert abs(float(one.mean())) < 0.15
    assert float(one.std()) == pytest.approx(1, abs=0.1)
    assert gather.seeded_noise(like.to(torch.bfloat16), 1).dtype is torch.bfloat16
