"""Pairs that COX makes where none are given: of centroids, of a class, and of nearest features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train import gather
from outmodal.train.methods.cox_sets import AGREE, DISAGREE, NO_ROLE, Verdict
from outmodal.train.nearest import Aggregate, nearest_over_ranks
from outmodal.train.selection import top_k, top_k_quota


def class_means(x: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each class, in fp64 inside: [C, d] and how many there are, [C].

    Rows of label -1 take no part; a class without rows has mean 0.
    """
    rows = label >= 0
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    sums.index_add_(0, label[rows], x[rows].double())
    counts = torch.bincount(label[rows], minlength=classes)
    return (sums / counts.clamp_min(1)[:, None]).float(), counts


def same_class(label: Tensor, candidates: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """A random candidate of each row's class (C14 `class_random`).

    Args:
        label: [B], -1 for rows that want none.
        candidates: [P] classes, -1 for those that cannot be chosen.
        scores: [B, P] independent noise: the largest one wins.

    Returns:
        Position [B] among the candidates, and whether there is one [B].
    """
    fits = (label[:, None] == candidates[None]) & (label >= 0)[:, None]
    return torch.where(fits, scores, -torch.inf).argmax(dim=1), fits.any(dim=1)


@dataclass(frozen=True)
class Correspondence:
    """The known samples nearest to every sample of the unknown modality.

    Attributes:
        partner: [K, N] place in the split of the known sample for each modality; -1 for none.
        distance: [N] delta, infinite where there is no partner or its labels differ.
        label: [N] label of the partner, -1 where there is none.
    """

    partner: Tensor
    distance: Tensor
    label: Tensor


def correspond(
    z: Tensor,
    present: Tensor,
    mapped: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    paired: bool = True,
    aggregate: Aggregate = "mean_norm",
    names: Sequence[str] = (),
    tile: tuple[int, int] | None = None,
) -> Correspondence:
    """Emergent correspondence: min over i of the mean over k of |z_j - v_{k,i}| (sec. 3.4, C10).

    Collective; equal on all ranks. Nothing but features decides: the places of z and of v in the
    split break ties among v alone.

    Args:
        z, present: [N, d], [N] bool.
        mapped: K x [M, d], v_k.
        labels: K x [M] class of known samples, -1 where they lack label or modality.
        paired: One i for all k, among samples that have all K modalities. Otherwise the nearest in
            each modality; only samples whose K labels agree get a partner, at the mean of the K
            distances.
        aggregate: See `nearest_over_ranks`.
        names: Of the known modalities, for errors.
        tile: See `nearest_over_ranks`.

    Returns:
        Of which `partner` holds rows of `mapped`.

    Raises:
        UserError: No known sample can be a partner.
    """
    groups = [range(len(mapped))] if paired else [[k] for k in range(len(mapped))]
    rows = torch.nonzero(present).flatten()
    distances, partners, found = [], [], []
    for group in groups:
        usable = torch.stack([labels[k] >= 0 for k in group]).all(dim=0)
        columns = torch.nonzero(usable).flatten()
        if not len(columns):
            raise _no_partner([names[k] if names else str(k) for k in group])
        distance, place = nearest_over_ranks(
            z[rows],
            [mapped[k][columns] for k in group],
            aggregate=aggregate,
            names=[names[k] for k in group] if names else (),
            tile=tile,
        )
        distances.append(distance)
        partners += [columns[place]] * len(group)
        found.append(labels[group[0]][columns[place]])
    return _scattered(rows, len(z), distances, partners, found)


def _scattered(
    rows: Tensor,
    count: int,
    distances: Sequence[Tensor],
    partners: Sequence[Tensor],
    found: Sequence[Tensor],
) -> Correspondence:
    """Over the whole split, for the rows that were searched."""
    labels = torch.stack(list(found))
    agree = (labels == labels[0]).all(dim=0)
    distance = torch.full((count,), torch.inf)
    label = torch.full((count,), -1, dtype=torch.int64)
    partner = torch.full((len(partners), count), -1, dtype=torch.int64)
    distance[rows] = torch.where(agree, torch.stack(list(distances)).mean(dim=0), torch.inf)
    label[rows] = torch.where(agree, labels[0], -1)
    partner[:, rows] = torch.where(agree, torch.stack(list(partners)), -1)
    return Correspondence(partner, distance, label)


def _no_partner(names: Sequence[str]) -> UserError:
    if len(names) == 1:
        return UserError(
            f"no training sample has both a label and '{names[0]}', one of method.known: leave it "
            "out of method.known, or add samples"
        )
    return UserError(
        f"no labelled training sample has all of {', '.join(names)}, so none can be the partner of "
        "an unknown one: set method.im_paired false, or name fewer in method.known"
    )


def pair_roles(
    found: Correspondence,
    verdict: Verdict,
    candidates: Tensor,
    *,
    anchors: int,
    quota: float | None,
) -> Tensor:
    """Roles of the main stage: A_S, the nearest pairs, each an anchor of its partner's label, also
    where the judges disagree on it (C11); the others by agreement.

    Args:
        found: Correspondence of all N samples.
        verdict: The judges' on them.
        candidates: [N] bool, samples with the unknown modality.
        anchors: S; ties by index.
        quota: Largest share of S for one class, or None.

    Returns:
        [N] int64 roles, see `cox_sets`, equal on all ranks.
    """
    roles = torch.full((len(candidates),), NO_ROLE, dtype=torch.int64)
    roles[candidates] = torch.where(verdict.agree[candidates], AGREE, DISAGREE)
    able = torch.nonzero(candidates & (found.label >= 0)).flatten()
    score, label = -found.distance[able], found.label[able]
    if quota is None:
        best = top_k(score, anchors, able)
    else:
        best = top_k_quota(score, anchors, able, label, max(1, int(quota * anchors)))
    roles[able[best]] = label[best]
    gather.broadcast_tensors([roles])
    return roles
