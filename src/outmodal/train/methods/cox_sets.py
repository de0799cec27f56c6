"""COX's judges and the sets they form: agreement anchors and disagreement over a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from outmodal.train import gather
from outmodal.train.selection import agreement, top_k, top_k_quota

NO_ROLE, DISAGREE, AGREE = -1, -2, -3
"""Roles of training samples; a role >= 0 is an anchor with that pseudo-label. NO_ROLE: labelled,
or without the unknown modality. AGREE: in agreement, but not among the chosen anchors."""

REFIT_LR = 1e-2  # ten times the run's usual rate: one short pass must reach near-optimal heads
_CHUNK = 65536  # rows judged at a time, so that posteriors of a large split never coexist


@dataclass(frozen=True)
class Judge:
    """A linear head h_k at rest, in fp32 on the CPU.

    Attributes:
        weight, bias: [C, d], [C].
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [N, C]."""
        return F.linear(features.float(), self.weight, self.bias)


def refit(
    judge: Judge, features: Tensor, label: Tensor, *, epochs: int, batch: int, seed: int
) -> Judge:
    """Train a copy of a head on fixed features: Adam in seeded order, its rate falling to zero.

    Args:
        judge: Where it starts.
        features: [N, d]; rows without a label take no part.
        label: [N], -1 where absent.
        epochs, batch: Passes and samples a step.
        seed: Of the order.
    """
    known = torch.nonzero(label >= 0).flatten()
    weight = judge.weight.clone().requires_grad_()
    bias = judge.bias.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=REFIT_LR)
    generator = torch.Generator().manual_seed(seed)
    orders = [known[torch.randperm(len(known), generator=generator)] for _ in range(epochs)]
    steps = [rows for order in orders for rows in torch.split(order, batch)]
    with torch.enable_grad():
        for done, rows in enumerate(steps):
            optimizer.param_groups[0]["lr"] = REFIT_LR * (1 - done / len(steps))
            loss = F.cross_entropy(F.linear(features[rows], weight, bias), label[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return Judge(weight.detach(), bias.detach())


@dataclass(frozen=True)
class Verdict:
    """What the judges say of every row.

    Attributes:
        predictions: [K, N] class by each judge.
        agree: [N] bool.
        confidence: [N] mean over judges of the largest posterior.
    """

    predictions: Tensor
    agree: Tensor
    confidence: Tensor


def judge_all(judges: Sequence[Callable[[Tensor], Tensor]], z: Tensor, own: Tensor) -> Verdict:
    """Apply every judge to features z [N, d].

    Args:
        judges: h_1..h_K, each from features to logits.
        z: [N, d].
        own: [N] class by the learner's classifier h_O, whom a single judge is compared with (C15).
    """
    outcomes = [_peaks(judge, z) for judge in judges]
    predictions = torch.stack([p for p, _ in outcomes])
    confidence = torch.stack([c for _, c in outcomes]).mean(dim=0)
    voices = predictions if len(judges) > 1 else torch.cat([predictions, own[None]])
    return Verdict(predictions, agreement(voices), confidence)


def _peaks(judge: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    parts = [judge(rows).softmax(dim=1).max(dim=1) for rows in torch.split(z, _CHUNK)]
    return torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts])


def form_roles(
    verdict: Verdict, candidates: Tensor, *, anchors: int, quota: float | None = None
) -> Tensor:
    """Give every sample of a split its role.

    Args:
        verdict: On all N samples.
        candidates: [N] bool: unlabelled, with the unknown modality.
        anchors: T, the most confident agreeing candidates to take; ties by index.
        quota: Largest share of T for one class, or None.

    Returns:
        [N] int64 roles.
    """
    roles = torch.full((len(candidates),), NO_ROLE, dtype=torch.int64)
    roles[candidates & ~verdict.agree] = DISAGREE
    agreed = torch.nonzero(candidates & verdict.agree).flatten()
    roles[agreed] = AGREE
    score, label = verdict.confidence[agreed], verdict.predictions[0][agreed]
    if quota is None:
        best = top_k(score, anchors, agreed)
    else:
        best = top_k_quota(score, anchors, agreed, label, max(1, int(quota * anchors)))
    roles[agreed[best]] = label[best]
    gather.broadcast_tensors([roles])  # another machine's rounding must not make other sets
    return roles


def rows_with(roles: Tensor, role: int | None) -> NDArray[np.int64]:
    """Sorted indices of the samples with a role; None is any anchor."""
    chosen = roles >= 0 if role is None else roles == role
    found: NDArray[np.int64] = torch.nonzero(chosen).flatten().numpy()
    return found


def batch_roles(verdict: Verdict, index: Tensor, rows: Tensor, anchors: int) -> Tensor:
    """Roles within one global batch (C13 `batch`).

    Args:
        verdict: On this rank's rows.
        index: [B] the samples' indices in their split, which break ties.
        rows: [B] bool, rows that may take part.
        anchors: Most confident agreeing rows of the *global* batch to take.

    Returns:
        [B] int64 roles of this rank's rows.
    """
    eligible = rows & verdict.agree
    score = torch.where(eligible, verdict.confidence, -torch.inf)
    everyone, keys = gather.all_gather_rows(score), gather.all_gather_rows(index)
    # distinct keys even where a batch holds a sample twice: the position decides the rest
    keys = keys * len(keys) + torch.arange(len(keys), device=keys.device)
    best = torch.zeros_like(everyone, dtype=torch.bool)
    best[top_k(everyone, anchors, keys)] = True
    own = best.narrow(0, gather.row_offset(len(index)), len(index)) & eligible
    roles = torch.where(rows & ~verdict.agree, DISAGREE, NO_ROLE)
    roles = torch.where(eligible, AGREE, roles)
    return torch.where(own, verdict.predictions[0], roles)
