"""Letting a method change the full gradient of a step, after its reduction over ranks and before it
is clipped.

The gradient must be whole somewhere for that. ZeRO 2 and 3 cut each gradient over the ranks as soon
as it is reduced and drop the rest; ZeRO 1 cuts it once, at the end of the backward pass, and is
put together again here. Noise must be one draw for all ranks: see
`gather.seeded_noise`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train.methods.base import Method
from outmodal.train.state import Layout

_CUT = ("zero2", "zero3")


def edits(method: Method) -> bool:
    """Whether a method changes gradients."""
    return type(method).edit_gradients is not Method.edit_gradients


def check_edits(method: Method, strategy: str) -> None:
    """Raise UserError where a method changes gradients that are never whole."""
    if edits(method) and strategy in _CUT:
        raise UserError(
            f"method '{type(method).__name__}' changes the gradient of each modality, for which it "
            f"must see whole gradients, and engine.strategy {strategy} (ZeRO stage {strategy[-1]}) "
            "cuts each one over the ranks as soon as it is reduced, so that no rank ever holds "
            "one: set engine.strategy to ddp or zero1"
        )


@torch.no_grad()
def edit(method: Method, layout: Layout, stage: str, step: int) -> None:
    """Give the method the full reduced gradient, and train with what it makes of it. Collective.

    Args:
        method: Its `edit_gradients` is called with the gradients of the parameters that the step
            moves, by name.
        layout: Where the gradients lie.
        stage: Name of the stage.
        step: Optimizer step, equal on all ranks.
    """
    if not edits(method):
        return
    local = layout.gradients()
    full: dict[str, Tensor] = {}
    for i, gradient in enumerate(local):
        if gradient is not None:
            full |= layout.full(i, gradient)
    method.edit_gradients(full, stage, step)
    for i, gradient in enumerate(local):
        if gradient is not None:
            layout.fill(i, gradient, full)
    layout.set_gradients(local)
