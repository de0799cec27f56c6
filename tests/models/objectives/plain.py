"""Batches of random unit vectors, and the papers' formulas written plainly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.models.kernels.exchange import LOCAL, Exchange
from outmodal.models.objectives import Objective

NAMES = ("sight", "sound", "touch", "smell", "taste", "sense")


def units(
    count: int, rows: int = 7, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """`count` modalities of unit vectors that share a part of their direction."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, dim, generator=g, dtype=dtype)
    return {
        m: F.normalize(common + torch.randn(rows, dim, generator=g, dtype=dtype), dim=-1)
        for m in NAMES[:count]
    }


def gaps(names: Sequence[str], rows: int, seed: int = 1) -> dict[str, Tensor]:
    """A mask with gaps, of which the first two rows are whole."""
    g = torch.Generator().manual_seed(seed)
    present = {m: torch.rand(rows, generator=g) < 0.6 for m in names}
    for mask in present.values():
        mask[:2] = True
    return present


def take(batch: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Some rows of every modality."""
    return {m: t[rows] for m, t in batch.items()}


def gradients(
    objective: Objective,
    batch: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
    step: int = 1,
    exchange: Exchange = LOCAL,
) -> dict[str, Tensor]:
    """The loss, its gradient by every modality and by every parameter."""
    leaves = {m: t.clone().requires_grad_() for m, t in batch.items()}
    loss = objective(leaves, present, exchange, step, leaves).loss
    parameters = dict(objective.named_parameters())
    every = {**leaves, **parameters}
    found = torch.autograd.grad(loss, list(every.values()), allow_unused=True)
    out = {
        k: torch.zeros_like(t) if g is None else g
        for (k, t), g in zip(every.items(), found, strict=True)
    }
    return {"loss": loss.detach(), **out}


def by_formula(
    batch: Mapping[str, Tensor], formula: Callable[[dict[str, Tensor]], Tensor]
) -> dict[str, Tensor]:
    """A formula's value and its gradient by every modality."""
    leaves = {m: t.clone().requires_grad_() for m, t in batch.items()}
    loss = formula(leaves)
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {"loss": loss.detach(), **dict(zip(leaves, found, strict=True))}


def agree(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, rtol: float, atol: float
) -> None:
    """Assert that every expected entry was got."""
    for key, value in expected.items():
        torch.testing.assert_close(got[key].to(value.dtype), value, msg=key, rtol=rtol, atol=atol)


def tangent(found: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with each modality's gradient on the sphere: kernels take lengths to be 1."""
    flat = {m: found[m] - (found[m] * t).sum(dim=1, keepdim=True) * t for m, t in batch.items()}
    return {**found, **flat}


def cross_entropy(logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of [n, n] logits whose partners are on the diagonal."""
    return F.cross_entropy(logits, torch.arange(len(logits)), label_smoothing=smoothing)


def clip(batch: Mapping[str, Tensor], scale: Tensor | float) -> Tensor:
    """Sum over pairs of the mean of both directions."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.combinations(batch.values(), 2):
        logits = scale * a @ b.T
        total = total + 0.5 * (cross_entropy(logits) + cross_entropy(logits.T))
    return total


def rest_of(batch: Mapping[str, Tensor], anchor: str) -> list[Tensor]:
    """All modalities but the anchor."""
    return [t for m, t in batch.items() if m != anchor]


def projector(vectors: Sequence[Tensor], ridge: float = 0.0) -> Tensor:
    """[n, d, d] A (A^T A + ridge I)^-1 A^T for the vectors of each sample."""
    a = torch.stack(list(vectors), dim=2)
    gram = a.mT @ a + ridge * torch.eye(len(vectors), dtype=a.dtype)
    found: Tensor = a @ torch.linalg.inv(gram) @ a.mT
    return found


def volumes(anchor: Tensor, rest: Sequence[Tensor]) -> Tensor:
    """[A, B] sqrt(det Gram) of anchor i with the group of sample j."""
    rows = []
    for z in anchor:
        stacked = torch.stack([z.expand_as(rest[0]), *rest], dim=1)
        rows.append(torch.linalg.det(stacked @ stacked.mT).clamp(min=1e-14).sqrt())
    return torch.stack(rows)


def areas(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """[A, B] areas of triangles in space, from their sides."""
    u, v = a[:, None] - b[None], a[:, None] - c[None]
    squared = u.square().sum(-1) * v.square().sum(-1) - (u * v).sum(-1).square()
    return 0.5 * squared.clamp(min=1e-14).sqrt()
