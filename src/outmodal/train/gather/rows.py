"""Rows of all ranks in rank order, with and without gradient."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outmodal.train.gather.group import world


def all_gather_flat(t: Tensor) -> Tensor:
    """Gather equally shaped tensors: [...] on each rank -> [world, ...] in rank order."""
    if world().size == 1:
        return t.detach()[None]
    held = t.detach().to(world().device).contiguous()
    out = held.new_empty((world().size, *held.shape))
    if out.numel():
        call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # newer name
        call(out.view(-1), held.view(-1))
    return out


def own_part(parts: Tensor) -> Tensor:
    """Return this rank's entry of the leading axis: [world, ...] -> [...]."""
    return parts[world().rank]


def all_gather_pieces(t: Tensor) -> list[Tensor]:
    """Rows of each rank in rank order, without gradient. Row counts may differ."""
    if world().size == 1:
        return [t.detach()]
    held = t.detach().to(world().device)
    if held.dtype is torch.bool:
        return [piece.bool() for piece in all_gather_pieces(held.to(torch.uint8))]
    counts = [int(c) for c in all_gather_flat(torch.tensor([held.shape[0]])).flatten().tolist()]
    padded = held.new_zeros((max(counts), *held.shape[1:]))
    padded[: held.shape[0]] = held
    return [part[:n] for part, n in zip(all_gather_flat(padded), counts, strict=True)]


def all_gather_rows(t: Tensor) -> Tensor:
    """Concatenate rows of all ranks in rank order, without gradient. Row counts may differ."""
    return torch.cat(all_gather_pieces(t))


def all_gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value` in rank order, on every rank. JSON types only."""
    raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(bytes(piece.cpu().tolist())) for piece in all_gather_pieces(raw)]


def reduce_scatter(own: Tensor, parts: Tensor) -> None:
    """Sum equally shaped parts over ranks, each for its rank: [world * n, ...] -> own [n, ...]."""
    call = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # newer name
    call(own, parts.contiguous())


class _Gather(torch.autograd.Function):
    """Concatenation over ranks whose backward is the reduce-scatter of the sum."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.rows = t.shape[0]
        return all_gather_flat(t).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        own: Tensor = grads[0].new_empty((ctx.rows, *grads[0].shape[1:]))
        reduce_scatter(own, grads[0])
        return own


def gather_with_grad(t: Tensor) -> Tensor:
    """Concatenate [B, ...] of all ranks to [world * B, ...] with gradient to every rank's rows.

    All ranks must hold the same number of rows, as they do for training batches.
    """
    if world().size == 1:
        return t
    out: Tensor = _Gather.apply(t)  # type: ignore[no-untyped-call]
    return out


def row_offset(rows: int) -> int:
    """Return where this rank's `rows` rows begin in what the gathers return."""
    return world().rank * rows
