"""The optimizer: its configuration, its parameter groups, and which groups a step moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from outmodal.base import Config
from outmodal.train.schedule import ScheduleName, factor


class OptimConfig(Config):
    """Optimizer and learning-rate schedule.

    Attributes:
        name: adam (weight decay added to the gradient), adamw (decoupled) or sgd.
        lr: Base learning rate, after the warm-up.
        weight_decay: Weight decay of every group that does not set its own; each step of adamw
            takes it times the learning rate.
        decay: What decays: all, or only matrices and kernels: no biases, norms, learned tokens
            and positions (tensors of fewer than two axes, or whose first axis is 1).
        betas, eps: Adam's.
        momentum: SGD's.
        schedule: cosine, constant or wsd (warm-up, stable, decay).
        warmup_epochs: Length of the linear warm-up; fractions are fine.
        warmup_steps: The same in steps; wins over warmup_epochs where it is not 0.
        warmup_lr: Learning rate of the first step of the warm-up; 0 begins one step above 0.
        min_lr_ratio: Last learning rate as a share of `lr`.
        cooldown_epochs: Epochs at the end of the run that stay there (not of schedule constant).
    """

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    decay: Literal["all", "matrices"] = "all"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: ScheduleName = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_lr: float = Field(default=0.0, ge=0)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    cooldown_epochs: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _warm_up_rises(self) -> Self:
        if self.warmup_lr > self.lr:
            raise ValueError(f"warmup_lr {self.warmup_lr} is above lr {self.lr}: a warm-up rises")
        return self

    def build(self, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
        """Make the torch optimizer over a method's parameter groups.

        Each group may set "lr_scale" and "weight_decay"; a group's "idle" flag makes the next
        step pass it over (see `mark_idle`).
        """
        whole = [_group(g, self.weight_decay) for g in groups if list(g["params"])]
        parts = [part for group in whole for part in _split(group)]
        held = whole if self.decay == "all" else parts
        optimizer: torch.optim.Optimizer
        if self.name == "sgd":
            optimizer = torch.optim.SGD(held, lr=self.lr, momentum=self.momentum)
        else:
            kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
            optimizer = kind(held, lr=self.lr, betas=self.betas, eps=self.eps)
        optimizer.register_step_pre_hook(_pass_idle_groups_over)
        return optimizer

    def warmup(self, steps_per_epoch: int) -> int:
        """Return the warm-up's length in steps."""
        return self.warmup_steps or round(self.warmup_epochs * steps_per_epoch)

    def set_lr(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        total: int,
        steps_per_epoch: int,
        scale: float = 1.0,
    ) -> float:
        """Write the learning rate of step `step` of a schedule into every group, times `scale`;
        return the base."""
        share = factor(
            step,
            total,
            self.warmup(steps_per_epoch),
            self.schedule,
            self.min_lr_ratio,
            start=self.warmup_lr / self.lr,
            cooldown=round(self.cooldown_epochs * steps_per_epoch),
        )
        base = self.lr * share * scale
        for group in optimizer.param_groups:
            group["lr"] = base * group["lr_scale"]
        return base


def _group(group: Mapping[str, Any], weight_decay: float) -> dict[str, Any]:
    return {
        "name": group["name"],
        "params": list(group["params"]),
        "lr_scale": float(group.get("lr_scale", 1.0)),
        "weight_decay": float(group.get("weight_decay", weight_decay)),
        "idle": False,
    }


def _split(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group in two: what decays, and what does not."""
    decays = [p.ndim > 1 and p.shape[0] > 1 for p in group["params"]]
    parts = []
    for name, chosen in ((group["name"], True), (f"{group['name']}, no decay", False)):
        params = [p for p, d in zip(group["params"], decays, strict=True) if d == chosen]
        decay = group["weight_decay"] if chosen else 0.0
        if params:
            parts.append({**group, "name": name, "params": params, "weight_decay": decay})
    return parts


def _pass_idle_groups_over(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    for group in optimizer.param_groups:
        if group["idle"]:
            for p in group["params"]:
                p.grad = None


class Reached:
    """Notes which parameters a step's backward passes reached.

    Engines disagree about parameters without a gradient: torch passes them over, ZeRO steps
    them with a gradient of zero, under which Adam with weight decay would shrink them at full
    learning rate. Here a *group* without any gradient on any rank is passed over by all
    engines alike (its weights, moments and counters stay), and within a group that is reached
    the missing gradients are zeros.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]]) -> None:
        self._count = 0
        self._flags: list[list[int]] = []
        self._handles: list[Any] = []
        for group in groups:
            flags = [0] * len(group["params"])
            self._flags.append(flags)
            for i, p in enumerate(group["params"]):
                hook = p.register_post_accumulate_grad_hook(_noting(flags, i))
                self._handles.append(hook)

    def reset(self) -> None:
        """Forget the last step."""
        for flags in self._flags:
            flags[:] = [0] * len(flags)

    def groups(self) -> list[int]:
        """1 for each group with a gradient on this rank, else 0."""
        return [int(any(flags)) for flags in self._flags]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _noting(flags: list[int], i: int) -> Any:
    def hook(_: Tensor) -> None:
        flags[i] = 1

    return hook


def mark_idle(optimizer: torch.optim.Optimizer, reached: Sequence[int]) -> None:
    """Let the next step pass over the groups that were not reached."""
    for group, hit in zip(optimizer.param_groups, reached, strict=True):
        group["idle"] = not hit


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named parameters that require a gradient."""
    return [(n, p) for n, p in module.named_parameters() if p.requires_grad]
