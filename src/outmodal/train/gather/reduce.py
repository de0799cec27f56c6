"""Reductions over the rows of the global batch, and noise that is drawn for all of them at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from outmodal.train.gather.group import world
from outmodal.train.gather.rows import row_offset


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the selected rows of the *global* batch, as a term of this rank's loss.

    Args:
        values: [B] per-row losses of this rank.
        mask: [B] bool, the rows that count; None is all of them.

    Returns:
        Scalar `sum of this rank's rows * world / global count`: its mean over ranks is the
        mean over the global batch, and so is its gradient's. Zero attached to the graph where
        no rank selects a row (so that collectives in the backward stay in step).

    The host waits for nothing here: rows are blanked, not picked, and the count stays where the
    values are, so that a step's loss can be queued while its forward still runs.
    """
    mask = _mask_of(values, mask)
    count = mask.sum()
    if world().size > 1:
        dist.all_reduce(count)
    share = (world().size / count.clamp(min=1).double()).to(values.dtype)
    return torch.where(mask, values, 0).sum() * share


def global_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the selected rows over all ranks, detached and equal everywhere; 0 without rows."""
    values, mask = values.detach().double(), _mask_of(values, mask)
    both = torch.stack([torch.where(mask, values, 0).sum(), mask.sum().double()])
    if world().size > 1:
        dist.all_reduce(both)
    return (both[0] / both[1].clamp(min=1)).float()


def _mask_of(values: Tensor, mask: Tensor | None) -> Tensor:
    """[B] bool where the values are, which have one number a row."""
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    assert mask.shape == values.shape, "one number a row"
    return mask.to(values.device, non_blocking=True)


def mean_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite each tensor in place with its mean over ranks. Collective."""
    size = world().size
    if size == 1:
        return
    for t in tensors:
        dist.all_reduce(t)
        t.div_(size)


def seeded_normal(rows: int, dim: int, *seeds: int) -> Tensor:
    """This rank's rows of one standard normal draw for the global batch, on the CPU.

    Args:
        rows: Rows of this rank (the same number on every rank).
        dim: Width.
        seeds: Any integers; equal ones give equal draws on every machine and world size.
    """
    digest = hashlib.sha256(",".join(str(int(s)) for s in seeds).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    draw = torch.randn(rows * world().size, dim, generator=generator)
    return draw.narrow(0, row_offset(rows), rows)


def seeded_numbers(rows: int, count: int, *seeds: int) -> Tensor:
    """This rank's rows [rows] of numbers 0 .. count - 1 drawn for the global batch, on the CPU.

    Each stretch of `count` rows of the global batch holds every number once, in a drawn order.

    Args:
        rows: Rows of this rank (the same number on every rank).
        count: How many numbers there are.
        seeds: See `seeded_normal`.
    """
    digest = hashlib.sha256(",".join(str(int(s)) for s in seeds).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    rounds = -(-rows * world().size // count)
    draw = torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
    return draw.narrow(0, row_offset(rows), rows)


def seeded_noise(like: Tensor, *words: int | str) -> Tensor:
    """Standard normal numbers shaped like a tensor, equal on all ranks and devices.

    Args:
        like: Shape, type and device.
        words: Name the draw: other words give an independent one.
    """
    digest = hashlib.sha256(repr(words).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)
