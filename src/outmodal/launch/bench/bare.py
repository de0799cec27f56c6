"""What one would write by hand: the loop that the engine is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.data.mixing import Mixed
from outmodal.launch.config import RunConfig
from outmodal.models.features import feature_norm
from outmodal.train.methods.supervised import Supervised


class Given(NamedTuple):
    """Inputs [B, ...] and labels [B] of a step; what mixing made of the labels, if anything."""

    x: Tensor
    label: Tensor
    mixed: Mixed | None = None


class Classifier(nn.Module):
    """The parts of a supervised method in a row."""

    def __init__(self, method: Supervised) -> None:
        super().__init__()
        parts = method.export_parts(None)
        assert parts.classifier is not None
        self.learner, self.classifier = parts.learner, parts.classifier
        self.head: nn.Module = nn.Identity() if parts.head is None else parts.head
        self.norm = parts.feature_norm

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [B, ...] -> logits [B, C]."""
        logits: Tensor = self.classifier(feature_norm(self.head(self.learner(x)), self.norm))
        return logits


def bare_loop(
    method: Supervised,
    config: RunConfig,
    batches: Iterator[Given],
    device: torch.device,
    before_step: Callable[[], None],
) -> None:
    """Cross-entropy, clipping, schedule, optimizer and average of the recipe, and nothing else.

    Args:
        method: Whose parts are trained.
        config: The recipe.
        batches: What comes step by step, without end.
        device: Where.
        before_step: Called before every step.
    """
    optim, engine = config.optim, config.engine
    smoothing = float(getattr(config.method, "smoothing", 0.0))
    model = Classifier(method).to(device).train()
    params = list(model.parameters())
    average = [p.detach().clone() for p in params] if engine.ema else []
    optimizer = optim.build([{"name": "all", "params": params}])
    if engine.compile:
        model.compile()
    low = engine.precision == "bf16"
    step = 0
    while True:
        before_step()
        x, label, mixed = next(batches)
        x, label = x.to(device, non_blocking=True), label.to(device, non_blocking=True)
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * 0.5 * (1 + math.cos(math.pi * step / 1_000_000))
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            logits = model(x)
        loss = _cross_entropy(logits.float(), label, mixed, smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        if engine.clip:
            torch.nn.utils.clip_grad_norm_(params, engine.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average:
            torch._foreach_lerp_(average, [p.detach() for p in params], 1 - engine.ema)
        step += 1
        if step % engine.log_every == 0:
            float(loss.detach())


def _cross_entropy(logits: Tensor, label: Tensor, mixed: Mixed | None, smoothing: float) -> Tensor:
    if mixed is None:
        return F.cross_entropy(logits, label, label_smoothing=smoothing)
    own = F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
    other = F.cross_entropy(logits, mixed.label, reduction="none", label_smoothing=smoothing)
    return (mixed.share * own + (1 - mixed.share) * other).mean()
