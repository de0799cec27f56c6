"""COX's exploration: pull the posteriors of disagreement samples towards the anchors' (L5).

Only the disagreement side has a gradient. Statistics are over the global batch of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.models.objectives.cox import (
    AnchorSummary,
    all_pairs_rows,
    knn_targets,
    log_mean_posterior,
    mean_posterior_kl,
    target_rows,
)
from outmodal.train import gather
from outmodal.train.methods.cox_config import CoxChoices


@dataclass(frozen=True)
class Side:
    """One side of the exploration on this rank.

    Attributes:
        z: [B, d].
        log_q: [B, C] log-posterior by h_O.
        rows: [B] bool, rows that belong to it.
    """

    z: Tensor
    log_q: Tensor
    rows: Tensor

    @staticmethod
    def of(z: Tensor, logits: Tensor, rows: Tensor) -> Side:
        """From features, logits and the rows' mask."""
        return Side(z, logits.float().log_softmax(dim=1), rows)

    @staticmethod
    def join(sides: Sequence[Side]) -> Side:
        """Rows of all sides."""
        parts = zip(*((s.z, s.log_q, s.rows) for s in sides), strict=True)
        return Side(*(torch.cat(p) for p in parts))

    def everywhere(self) -> Tensor:
        """log_q of the global batch's rows that belong to it, as constants [A, C]."""
        return gather.all_gather_rows(self.log_q)[gather.all_gather_rows(self.rows)]

    def z_everywhere(self) -> Tensor:
        """z of the same rows [A, d]."""
        return gather.all_gather_rows(self.z)[gather.all_gather_rows(self.rows)]


class AnchorMean:
    """Running mean of the anchors' mean posterior, in fp32 on the CPU, equal on all ranks.

    What a forward sees counts from the next one on. Each forward says which share of a full step
    it is, so that a step that is cut into micro-batches moves the mean as far as an uncut one.
    """

    def __init__(self, classes: int, decay: float) -> None:
        self.decay = decay
        self.mean = torch.zeros(classes)
        self.pending = torch.zeros(classes)  # sum of posteriors seen since `advance` folded
        self.counts = torch.zeros(4, dtype=torch.float64)  # steps folded, pending: rows, steps, no.

    @property
    def empty(self) -> bool:
        """Nothing has been seen yet: there is nothing to aim at."""
        return float(self.counts[0]) == 0 and float(self.counts[1]) == 0

    def start(self, posteriors: Tensor) -> None:
        """Begin from the anchors' posteriors [A, C], unless the mean has begun already."""
        if self.empty and len(posteriors):
            self.mean = posteriors.float().mean(dim=0).cpu()
            self.counts[0] = 1

    def advance(self, step: int) -> None:
        """Fold in what was seen, when `step` is a new one."""
        folded, seen, share, last = self.counts.tolist()
        self.counts[3] = step
        if step == last or seen == 0:
            return
        decayed = folded / (folded + share) if self.decay == 1.0 else self.decay**share
        keep = 0.0 if folded == 0 else decayed
        self.mean = keep * self.mean + (1 - keep) * self.pending / seen
        self.pending.zero_()
        self.counts[:3] = torch.tensor([folded + share, 0.0, 0.0])

    def see(self, posteriors: Tensor, share: float) -> None:
        """Note posteriors [A, C] of a forward that is `share` of a step."""
        if len(posteriors) == 0:
            return
        self.pending += posteriors.float().sum(dim=0).cpu()
        self.counts[1:3] += torch.tensor([len(posteriors), share])
        if float(self.counts[0]) == 0:  # the very first step aims at itself
            self.mean = self.pending / float(self.counts[1])

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""
        return {"mean": self.mean, "pending": self.pending, "counts": self.counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`."""
        self.mean, self.pending = state["mean"].clone(), state["pending"].clone()
        self.counts = state["counts"].clone()


def explore_term(
    choices: CoxChoices,
    disagree: Side,
    anchors: Side,
    mean: AnchorMean,
    *,
    sizes: tuple[int, int] | None,
    knn: int,
    share: float = 1.0,
) -> Tensor:
    """The exploration loss of a step.

    Args:
        choices: Form and direction.
        disagree, anchors: This rank's rows of each.
        mean: Running anchor posterior, already advanced to this step; it sees the anchors.
        sizes: (#A, #D) over the whole split, for the prefactor of `all_pairs`; None counts the
            step's own.
        knn: Neighbours.
        share: Of a full step that this forward is.

    Returns:
        Scalar, zero attached to the graph where no rank holds a disagreement row or there is
        no anchor to aim at.
    """
    log_a = anchors.everywhere()
    if choices.explore == "mean_posterior":
        mean.see(log_a.exp(), share)
        return _mean_posterior(choices, disagree, mean)
    if len(log_a) == 0:
        return disagree.log_q.sum() * 0.0
    if choices.explore == "knn":
        targets = knn_targets(disagree.z, anchors.z_everywhere(), log_a.exp(), knn)
        rows = target_rows(disagree.log_q, targets, choices.explore_kl)
        return gather.masked_mean(rows, disagree.rows)
    rows = all_pairs_rows(disagree.log_q, AnchorSummary.of(log_a), choices.explore_kl)
    many_a, many_d = sizes or (len(log_a), int(gather.all_gather_rows(disagree.rows).sum()))
    return gather.masked_mean(rows, disagree.rows) * (many_a * many_d / max(1, many_a + many_d))


def _mean_posterior(choices: CoxChoices, disagree: Side, mean: AnchorMean) -> Tensor:
    rows = gather.all_gather_rows(disagree.rows)
    log_q = gather.gather_with_grad(disagree.log_q)
    if not bool(rows.any()) or mean.empty:
        return log_q.sum() * 0.0
    log_mean = log_mean_posterior(log_q[rows])
    return mean_posterior_kl(log_mean, mean.mean.to(log_q.device), choices.explore_kl)
