"""Losses of COX (Huang et al., "Towards Out-of-Modal Generalization without Instance-level Modal
Correspondence", ICLR 2025) as functions of tensors: reconstruction and the exploration KLs.

Functions that end in `_rows` return one value a row; the caller averages over the global batch.
All work in fp32 whatever the dtype of their inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from outmodal.models.features import unit_norm

Direction = Literal["d_to_a", "a_to_d"]
"""KL(disagreement || anchor), as printed, or KL(anchor || disagreement), as in the code."""


def scale_gradient(t: Tensor, scale: float) -> Tensor:
    """`t` in the forward pass; its gradient is multiplied by `scale` (0 detaches)."""
    if scale == 1.0:
        return t
    held = t.detach()
    return held if scale == 0.0 else held + scale * (t - held)


def recon_rows(
    mapped: Tensor, z: Tensor, *, reduction: Literal["mean", "sum"] = "mean", grad_scale: float = 1
) -> Tensor:
    """Squared distance of a mapped feature to its target (Eq. 9).

    Args:
        mapped: [B, d] connection's output.
        z: [B, d] learner's feature.
        reduction: Over the feature dimension: "mean" divides by d, "sum" is the printed norm.
        grad_scale: Factor on the gradient that reaches `z`.

    Returns:
        [B].
    """
    gap = (mapped.float() - scale_gradient(z.float(), grad_scale)).square()
    return gap.mean(dim=1) if reduction == "mean" else gap.sum(dim=1)


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, of log-probabilities; terms with p = 0 count 0."""
    p = log_p.exp()
    gap = torch.where(p > 0, log_p - log_q, torch.zeros_like(log_p))
    return (p * gap).sum(dim=-1)


def log_mean_posterior(log_q: Tensor) -> Tensor:
    """log of the mean of posteriors given as logs, [B, C] -> [C], exact in the log domain."""
    return torch.logsumexp(log_q, dim=0) - torch.log(log_q.new_tensor(float(len(log_q))))


def mean_posterior_kl(
    log_mean_d: Tensor, target: Tensor, direction: Direction = "d_to_a"
) -> Tensor:
    """KL between the mean disagreement posterior and an anchor posterior (C8 `mean_posterior`).

    Args:
        log_mean_d: [C] log of the batch-mean posterior of disagreement samples.
        target: [C] anchor posterior, taken as a constant.
        direction: See `Direction`.
    """
    log_target = target.detach().float().clamp_min(1e-12).log()
    return _directed(log_mean_d.float(), log_target, direction)


@dataclass(frozen=True)
class AnchorSummary:
    """What the sum over all anchors needs to know about them, all constants.

    Attributes:
        mean_log: [C] mean over anchors of log q_a.
        mean: [C] mean over anchors of q_a.
        neg_entropy: scalar, mean over anchors of sum_c q_a log q_a.
    """

    mean_log: Tensor
    mean: Tensor
    neg_entropy: Tensor

    @staticmethod
    def of(log_q: Tensor) -> AnchorSummary:
        """Summary of anchors' log-posteriors [A, C]."""
        log_q = log_q.detach().float()
        q = log_q.exp()
        return AnchorSummary(log_q.mean(dim=0), q.mean(dim=0), (q * log_q).sum(dim=1).mean())


def all_pairs_rows(
    log_qd: Tensor, anchors: AnchorSummary, direction: Direction = "d_to_a"
) -> Tensor:
    """Mean over all anchors of the KL between each row and the anchor, [B, C] -> [B].

    Uses sum_a KL(q_d || q_a) = A * sum_c q_d (log q_d - mean_a log q_a) (and the same kind of
    identity the other way), so that the pairs are never formed: O((A + B) C).
    """
    log_qd = log_qd.float()
    if direction == "d_to_a":
        return (log_qd.exp() * (log_qd - anchors.mean_log)).sum(dim=1)
    return anchors.neg_entropy - log_qd @ anchors.mean


def knn_targets(z_d: Tensor, z_a: Tensor, q_a: Tensor, k: int) -> Tensor:
    """Mean posterior of each row's k nearest anchors by cosine (C8 `knn`).

    Args:
        z_d: [B, d] disagreement features.
        z_a: [A, d] anchor features.
        q_a: [A, C] anchor posteriors.
        k: Neighbours; all anchors where there are fewer.

    Returns:
        [B, C], a constant. Equal cosines go to the anchor that stands first.
    """
    with torch.no_grad(), torch.autocast(z_d.device.type, enabled=False):
        cosine = unit_norm(z_d) @ unit_norm(z_a).T
        order = torch.sort(cosine, dim=1, descending=True, stable=True).indices
        return q_a.float()[order[:, : min(k, len(z_a))]].mean(dim=1)


def target_rows(log_qd: Tensor, target: Tensor, direction: Direction = "d_to_a") -> Tensor:
    """KL between each row and its own constant target posterior, [B, C] x 2 -> [B]."""
    return _directed(log_qd.float(), target.detach().float().clamp_min(1e-12).log(), direction)


def _directed(log_d: Tensor, log_a: Tensor, direction: Direction) -> Tensor:
    return kl_rows(log_d, log_a) if direction == "d_to_a" else kl_rows(log_a, log_d)
