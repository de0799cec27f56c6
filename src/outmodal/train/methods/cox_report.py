"""COX's full passes over the training split, and the diagnostics that they give (the quantities of
the paper's Figures 5 and 6)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.models.features import unit_norm
from outmodal.train import diagnostics
from outmodal.train.methods.base import Context
from outmodal.train.methods.cox_sets import AGREE, DISAGREE, NO_ROLE, Judge, Verdict
from outmodal.train.retrieval import recall

log = logging.getLogger(__name__)

MMD_SAMPLES = 1000
_FEW_CLASSES = 50  # up to here each class gets its own line in the anchors' histogram


@dataclass(frozen=True)
class Survey:
    """One pass over a split, on the CPU.

    Attributes:
        z, logits, present: Unknown modality: [N, d], [N, C] by h_O, [N] bool.
        mapped: known modality -> v_k [N, d].
        judged: known modality -> what its head is trained on, v_k or u_k.
        known_present: known modality -> [N] bool.
    """

    z: Tensor
    logits: Tensor
    present: Tensor
    mapped: Mapping[str, Tensor]
    judged: Mapping[str, Tensor]
    known_present: Mapping[str, Tensor]

    @property
    def own(self) -> Tensor:
        """Class by h_O [N]."""
        return self.logits.argmax(dim=1)


def by_agreement(verdict: Verdict, own: Tensor, truth: Tensor, rows: Tensor) -> dict[str, float]:
    """Figure 6: share of agreement, and h_O's accuracy on agreement and on disagreement.

    Args:
        verdict: The judges' on all N samples.
        own: [N] class by h_O.
        truth: [N] true class, -1 where unknown; used for these numbers only.
        rows: [N] bool, the samples to count.
    """
    agree, disagree = rows & verdict.agree, rows & ~verdict.agree
    return {
        "agreement_rate": int(agree.sum()) / max(1, int(rows.sum())),
        "accuracy_agreement": diagnostics.accuracy(own[agree], truth[agree]),
        "accuracy_disagreement": diagnostics.accuracy(own[disagree], truth[disagree]),
    }


def describe(
    survey: Survey,
    verdict: Verdict,
    roles: Tensor,
    truth: Tensor,
    context: Context,
) -> dict[str, float]:
    """All diagnostics of one refresh, as scalars.

    Args:
        survey: The pass.
        verdict: The judges' on the pass.
        roles: [N] roles formed from it.
        truth: [N] true classes, used for these numbers only.
        context: For the names of the classes, and the seed of the MMD's subsample.
    """
    candidates = roles != NO_ROLE
    logs = by_agreement(verdict, survey.own, truth, candidates)
    logs["accuracy_unlabelled"] = diagnostics.accuracy(survey.own[candidates], truth[candidates])
    logs["agreement_purity"] = _purity(verdict, truth, candidates & verdict.agree)
    logs["anchor_purity"] = diagnostics.accuracy(roles[roles >= 0], truth[roles >= 0])
    logs["anchors"] = float((roles >= 0).sum())
    logs["disagreements"] = float((roles == DISAGREE).sum())
    logs["agreements_unused"] = float((roles == AGREE).sum())
    logs |= _anchor_classes(roles, context.classes)
    z = survey.z[survey.present]
    logs["z_std"] = diagnostics.mean_feature_std(z)
    logs["z_std_min"] = float(z.float().std(dim=0, unbiased=False).min()) if len(z) else math.nan
    for k, (name, mapped) in enumerate(survey.mapped.items()):
        guess = verdict.predictions[k][candidates]
        logs[f"judge_accuracy/{name}"] = diagnostics.accuracy(guess, truth[candidates])
        v = mapped[survey.known_present[name]]
        logs[f"mmd/{name}"] = diagnostics.mmd(v, z, limit=MMD_SAMPLES, seed=context.seed)
        logs[f"modality_gap/{name}"] = diagnostics.modality_gap(v, z)
    return finite(logs)


def instance_recall(z: Tensor, mapped: Tensor) -> dict[str, float]:
    """How well z [N, d] finds the mapped feature [N, d] of its own sample among all of them, by
    cosine: "r1_instance", "r5_instance", "map_instance"; empty where N is 0. Collective."""
    nobody = torch.full((len(z),), -1)  # no classes: what is asked for is the sample itself
    return recall(unit_norm(z), unit_norm(mapped), nobody, ks=(1, 5))


def finite(logs: Mapping[str, float]) -> dict[str, float]:
    """Without the entries that are undefined (an accuracy over no samples, for instance)."""
    return {name: value for name, value in logs.items() if math.isfinite(value)}


def _purity(verdict: Verdict, truth: Tensor, rows: Tensor) -> float:
    return diagnostics.accuracy(verdict.predictions[0][rows], truth[rows])


def _anchor_classes(roles: Tensor, classes: Sequence[str]) -> dict[str, float]:
    counts = diagnostics.histogram(roles[roles >= 0], len(classes))
    total = sum(counts)
    if total == 0:
        log.warning("no agreement anchors: the judges agree on no unlabelled sample")
        return {"anchor_classes": 0.0}
    share = max(counts) / total
    # with two classes an even split touches one half: alarm well above what balance gives
    if share > max(0.5, 1.5 / len(classes)):
        log.warning(
            "%.0f %% of the agreement anchors have class '%s': set method.anchor_class_quota or "
            "look at judge_accuracy",
            100 * share,
            classes[counts.index(max(counts))],
        )
    logs = {
        "anchor_classes": float(sum(n > 0 for n in counts)),
        "anchor_largest_class_share": share,
    }
    if len(classes) <= _FEW_CLASSES:
        logs |= {f"anchor_class/{name}": float(n) for name, n in zip(classes, counts, strict=True)}
    return logs


def stack_judges(judges: Sequence[Judge]) -> dict[str, Tensor]:
    """Judges as tensors for a checkpoint."""
    return {
        "judge_weight": torch.stack([j.weight for j in judges]),
        "judge_bias": torch.stack([j.bias for j in judges]),
    }


def unstack_judges(state: Mapping[str, Tensor]) -> list[Judge]:
    """Inverse of `stack_judges`; empty where the state holds none."""
    if "judge_weight" not in state:
        return []
    pairs = zip(state["judge_weight"].unbind(), state["judge_bias"].unbind(), strict=True)
    return [Judge(w.clone(), b.clone()) for w, b in pairs]
