"""Counting a step: arithmetic, live memory, and the line through two sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outmodal.launch.config import RunConfig
from outmodal.launch.plan.costs import Watch, at_rows, count
from outmodal.launch.plan.subject import Subject
from tests.launch.plan.recipes import align_config, vit_config


def test_a_linear_layer_costs_what_the_textbook_says() -> None:
    layer, x = nn.Linear(32, 48, bias=False), torch.randn(10, 32)
    costs = count(lambda: layer(x).sum(), [*layer.parameters(), x])
    # forward, and the gradient of the weights; the input wants none
    assert costs.flops.sum() == 2 * (2 * 10 * 32 * 48)


def test_memory_is_what_is_alive_at_the_worst_moment() -> None:
    x = torch.randn(1000)
    with Watch([x]) as watch:
        for _ in range(5):
            y = x * 2  # the one before dies when the next takes its name
        z = y + 1
        del y
        kept = watch.live
    assert kept == z.nbytes
    assert watch.costs(kept).peak == 2 * x.nbytes


def test_views_and_parameters_take_no_memory() -> None:
    w = torch.randn(64, 64)
    with Watch([w]) as watch:
        views = [w.t(), w[3:], w.view(-1)]
    assert watch.live == 0
    assert len(views) == 3


@pytest.mark.parametrize("config", [vit_config(width=32, depth=2), align_config()])
def test_two_small_batches_give_any_other(config: RunConfig) -> None:
    subject = Subject(config)
    direct = subject._measured(24)
    line = subject.step_costs(24)
    # the objective's own matrix of similarities grows with the square of the rows
    assert line.flops.sum() == pytest.approx(direct.flops.sum(), rel=0.02)
    assert line.peak == pytest.approx(direct.peak, rel=0.03)
    assert line.kept == pytest.approx(direct.kept, rel=0.03)


def test_sums_are_compared_where_a_loop_went_round_more_often() -> None:
    few, many = (count(lambda n=n: _loop(n), []) for n in (4, 8))
    assert len(few.flops) != len(many.flops)
    sixteen = at_rows((4, few), (8, many), 16)
    assert sixteen.moved.sum() == pytest.approx(4 * few.moved.sum(), rel=0.05)


def _loop(rows: int) -> torch.Tensor:
    return torch.stack([torch.ones(10) * 2.0 for _ in range(rows)]).sum()
