"""Parameter groups, their learning rates, and groups that a step passes over."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from outmodal.train.optim import OptimConfig, Reached, mark_idle


def groups() -> list[dict[str, object]]:
    torch.manual_seed(0)
    return [
        {"name": "one", "params": [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))]},
        {
            "name": "two",
            "params": [nn.Parameter(torch.randn(4))],
            "lr_scale": 0.5,
            "weight_decay": 0.0,
        },
    ]


def test_groups_keep_their_scale_and_decay() -> None:
    config = OptimConfig(lr=0.1, weight_decay=0.3, warmup_steps=1, schedule="constant")
    optimizer = config.build([*groups(), {"name": "empty", "params": []}])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]
    assert config.set_lr(optimizer, 0, 10, 5) == pytest.approx(0.05)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.025])
    config.set_lr(optimizer, 1, 10, 5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.05])


def test_only_matrices_decay_where_that_is_asked_for() -> None:
    module = nn.Module()
    module.line, module.norm = nn.Linear(3, 2), nn.BatchNorm2d(4)
    module.conv = nn.Conv2d(3, 4, 2)
    module.token = nn.Parameter(torch.zeros(1, 1, 5))
    module.places = nn.Parameter(torch.zeros(1, 7, 5))
    groups = [{"name": "all", "params": list(module.parameters()), "lr_scale": 0.5}]
    optimizer = OptimConfig(weight_decay=0.3, decay="matrices").build(groups)
    decay, rest = optimizer.param_groups
    found = {id(p) for p in decay["params"]}
    assert found == {id(module.line.weight), id(module.conv.weight)}
    assert len(rest["params"]) == 6
    assert [g["weight_decay"] for g in (decay, rest)] == [0.3, 0.0]
    assert [g["name"] for g in (decay, rest)] == ["all", "all, no decay"]
    assert [g["lr_scale"] for g in (decay, rest)] == [0.5, 0.5]


def test_a_warm_up_begins_at_its_rate_and_cooldown_ends_the_run() -> None:
    config = OptimConfig(
        lr=1e-3, warmup_epochs=2, warmup_lr=1e-6, min_lr_ratio=0.01, cooldown_epochs=3
    )
    optimizer = config.build(groups())
    rates = [config.set_lr(optimizer, step, 100, 5) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[10] == pytest.approx(1e-3)
    assert rates[85:] == pytest.approx([1e-5] * 15)
    with pytest.raises(ValidationError, match="a warm-up rises"):
        OptimConfig(lr=1e-4, warmup_lr=1e-3)


def test_warmup_in_epochs_or_steps() -> None:
    assert OptimConfig(warmup_epochs=0.5).warmup(40) == 20
    assert OptimConfig(warmup_epochs=0.5, warmup_steps=7).warmup(40) == 7


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_an_idle_group_keeps_weights_and_counters(name: str) -> None:
    held = groups()
    optimizer = OptimConfig(name=name, weight_decay=0.1).build(held)  # type: ignore[arg-type]
    reached = Reached(optimizer.param_groups)
    first, second, other = (p for g in optimizer.param_groups for p in g["params"])
    before = other.detach().clone()
    first.square().sum().backward()
    assert reached.groups() == [1, 0]
    mark_idle(optimizer, reached.groups())
    second.grad, other.grad = torch.zeros_like(second), torch.zeros_like(other)
    optimizer.step()
    assert torch.equal(other, before)
    assert other not in optimizer.state
    assert first in optimizer.state
    reached.reset()
    assert reached.groups() == [0, 0]
    reached.close()
    other.sum().backward()
    assert reached.groups() == [0, 0]


def test_names_choose_torchs_optimizers() -> None:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    for name, kind in kinds.items():
        config = OptimConfig(name=name, betas=(0.8, 0.9), momentum=0.5)  # type: ignore[arg-type]
        optimizer = config.build(groups())
        assert type(optimizer) is kind
        group = optimizer.param_groups[0]
        assert group.get("betas", (0.8, 0.9)) == (0.8, 0.9)
        assert group.get("momentum", 0.5) == 0.5
