"""What synergy training says of itself: which samples have targets, and where the latents lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.batch import StreamSpec
from outmodal.errors import UserError
from outmodal.train.methods.base import Context, Passes
from outmodal.train.wasserstein import gaussian_w2, sliced_w2, unit_mean_norm

if TYPE_CHECKING:
    from outmodal.train.methods.synergy import Synergy

LATENTS = 5000
"""Evaluation samples whose latents are compared; of fewer than this an estimate is coarse."""

_LOOKED_AT = 4096


@dataclass(frozen=True)
class Latents:
    """Latents of a split and one draw of targets for them, on the CPU.

    Attributes:
        z: [N, d] latents.
        target: [M, d] targets, M <= N.
        loss: Mean latent loss over the M samples with a target; NaN without.
        label: [N] classes, -1 where unknown.
        having: [S] bool: which of the samples that were asked for have one of the M targets.
    """

    z: Tensor
    target: Tensor
    loss: float
    label: Tensor
    having: Tensor


def guide_share(context: Context, guide: str, passes: Passes, paired: str = "") -> dict[str, float]:
    """{"targets/share": share of the training samples that have the guide}, of 4,096 at most.

    Args:
        context: The run.
        guide: Its name.
        passes: To look at the samples.
        paired: What else the same sample has to have; "" is nothing.

    Raises:
        UserError: None of them has it, or both.
    """
    count = len(context.labels[context.train_split])
    looked = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))
    names = (guide, paired) if paired else (guide,)
    spec = StreamSpec("guide_check", context.train_split, names, context.batch, looked)
    found = passes.infer("guide", spec)
    present = found["present"].bool()
    if not bool(present.any()):
        raise UserError(
            f"none of {len(looked)} samples of split '{context.train_split}' has '{guide}', whose "
            "features method.guide makes the targets: build the data set with it, or name another "
            "guide"
        )
    if paired and not bool(found["paired"].any()):
        raise UserError(
            f"none of {len(looked)} samples of split '{context.train_split}' pairs '{paired}' with "
            f"'{guide}', and method.level 3 learns from such pairs: use a paired data set, or "
            "method.targets samples, which needs no pairs"
        )
    return {"targets/share": float(present.double().mean())}


def latents_of(
    method: Synergy, passes: Passes, split: str, select: NDArray[np.int64] | None
) -> Latents:
    """One pass over samples of a split, for those that have the learner's modality."""
    context = method.context
    guide = method.targets.guide
    names = (method.unknown, guide) if guide else (method.unknown,)
    out = passes.infer("latents", StreamSpec("latents", split, names, context.batch, select))
    label = torch.from_numpy(context.labels[split])
    label = label if select is None else label[torch.from_numpy(select)]
    rows = out["present"].bool()
    z, label = out["z"][rows].float(), label[rows]
    able = out["own_present"].bool()[rows] if guide else torch.ones_like(label, dtype=torch.bool)
    if not guide and method.settings.target_assign == "per_class":
        able = label >= 0
    own = out["own"][rows] if guide else z.new_zeros(len(z), 0)
    target = z.new_zeros(0, method.targets.dim)
    if bool(able.any()):
        target = method.targets.draw(label[able], own[able].float(), context.seed)
    far = method.distance(z[able], target)
    having = rows.clone()
    having[rows] = able
    loss = float(far.double().mean()) if len(far) else float("nan")
    return Latents(z, target, loss, label, having)


def drawn(count: int, seed: int, most: int = LATENTS) -> NDArray[np.int64] | None:
    """Sorted places of `most` of `count` samples, the same in every call; None is all."""
    if count <= most:
        return None
    return np.sort(np.random.default_rng([seed, count]).choice(count, most, replace=False))


def diagnose(method: Synergy, passes: Passes) -> dict[str, float]:
    """ "latent/loss", "latent/w2" and "latent/sliced_w2" between latents and targets of the
    evaluation split (unit mean norm each, see `train.wasserstein`); {} without samples."""
    context = method.context
    select = drawn(len(context.labels[context.eval_split]), context.seed)
    found = latents_of(method, passes, context.eval_split, select)
    if min(len(found.z), len(found.target)) < 2:
        return {}
    z, target = unit_mean_norm(found.z), unit_mean_norm(found.target)
    values = {
        "latent/loss": found.loss,
        "latent/w2": gaussian_w2(z, target),
        "latent/sliced_w2": sliced_w2(z, target),
    }
    return {name: value for name, value in values.items() if np.isfinite(value)}
