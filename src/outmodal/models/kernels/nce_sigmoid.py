"""The sigmoid form of `nce` as one autograd function over the primitives and the exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from outmodal.models.kernels.checks import row_dots
from outmodal.models.kernels.exchange import Exchange


@dataclass(frozen=True)
class Sigmoid:
    """Module with `sigmoid_sums` and `sigmoid_grads`, and the exchange."""

    primitives: Any
    exchange: Exchange


class SigmoidLoss(torch.autograd.Function):
    """(q, k, scale, bias, weights, present, how) -> scalar loss."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        scale: Tensor,
        bias: Tensor,
        weights: Tensor,
        present: Tensor | None,
        how: Sigmoid,
    ) -> Tensor:
        row = torch.zeros_like(weights)

        def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
            live = block[1] if present is not None else None
            row.add_(how.primitives.sigmoid_sums(q, block[0], scale, bias, partner, present, live))

        how.exchange.visit([k] if present is None else [k, present], [], add)
        total = how.exchange.sum(weights.sum())
        share = torch.where(total > 0, how.exchange.size / total, torch.zeros_like(total))
        ctx.how = how
        ctx.save_for_backward(q, k, scale, bias, weights * share, present)
        return (weights * row).sum() * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, scale, bias, weights, present = ctx.saved_tensors
        upstream, how = weights * grad, ctx.how
        parts: list[Tensor] = []

        def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
            live = block[1] if present is not None else None
            d_rows, d_columns, d_bias = how.primitives.sigmoid_grads(
                q, block[0], scale, bias, partner, present, live, upstream
            )
            carried[0].add_(d_columns)
            new = (d_rows, d_bias)
            parts[:] = [p.add_(t) for p, t in zip(parts, new, strict=True)] if parts else new

        with torch.autocast(q.device.type, enabled=False):
            start = torch.zeros_like(k, dtype=scale.dtype)
            columns = [k] if present is None else [k, present]
            (dk,) = how.exchange.visit(columns, [start], add)
            dq, d_bias = parts
            d_scale = row_dots(dq, q).sum() / scale if ctx.needs_input_grad[2] else None
            return dq.to(q.dtype), dk.to(k.dtype), d_scale, d_bias.sum(), None, None, None
