"""A learner with a linear classifier on one modality: the part that COX shares with its baselines.

x -> r = f(x) -> z = norm(g(r)) in R^d -> logits = h_O(z). The projection g is linear, and the
classifier reads the *normalised* feature, since z is what COX compares with its connections.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.models.features import FeatureNorm, feature_norm
from outmodal.models.heads import Kind, ProjectionHead, linear_classifier
from outmodal.train import diagnostics, gather
from outmodal.train.methods.base import Context, Method, Passes
from outmodal.train.methods.labelled import (
    BaselineConfig,
    LabelDraw,
    LabelledConfig,
    Supervision,
    check_classes,
    feature_size,
    find_learner,
)
from outmodal.train.methods.parts import ExportParts


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a layer in its own weights' dtype and return fp32 (the engine may hold bf16 weights)."""
    weight = next(layer.parameters())
    out: Tensor = layer(x.to(weight.dtype))
    return out.float()


class Supervised(Method):
    """Base of the methods that train f, g and h_O, with `labelled` samples."""

    def __init__(
        self,
        context: Context,
        config: LabelledConfig,
        *,
        known: tuple[str, ...] = (),
        norm: FeatureNorm,
        label_draw: LabelDraw,
        head: Kind = "linear",
        fraction: float | None = None,
    ) -> None:
        super().__init__(context)
        check_classes(context)
        self.unknown = config.unknown
        self.norm: FeatureNorm = norm
        self.learner = find_learner(context, config.unknown, "method.unknown")
        self.dim = feature_size(context, config.dim, known, self.learner)
        self.projection = ProjectionHead(self.learner.dim, self.dim, head)
        self.classifier = linear_classifier(self.dim, len(context.classes))
        shown = config.label_fraction if fraction is None else fraction
        self.supervision = Supervision(context, shown, label_draw)

    def encode(self, x: Tensor) -> Tensor:
        """Inputs -> z [B, dim], normalised, fp32."""
        return feature_norm(self.projection(self.learner(x)), self.norm)

    def classify(self, z: Tensor) -> Tensor:
        """z [B, dim] -> logits [B, C], fp32."""
        return apply_linear(self.classifier, z)

    def encode_streams(self, batches: Mapping[str, Batch]) -> dict[str, tuple[Tensor, Tensor]]:
        """(z, logits) of the unknown modality in each batch, in one pass of the learner.

        One pass keeps sharded engines in step, and batch statistics see all roles alike.
        """
        names = [n for n in batches if self.unknown in batches[n].x]
        z = self.encode(torch.cat([batches[n].x[self.unknown] for n in names]))
        logits = self.classify(z)
        sizes = [len(batches[n]) for n in names]
        parts = zip(names, torch.split(z, sizes), torch.split(logits, sizes), strict=True)
        return {name: (part_z, part_logits) for name, part_z, part_logits in parts}

    def usable(self, batch: Batch) -> Tensor:
        """[B] bool: rows that are real and hold the unknown modality."""
        return batch.valid & batch.present[self.unknown]

    def supervised_loss(self, batch: Batch, logits: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy over the labelled rows of the global batch (L2)."""
        rows = self.usable(batch) & (batch.label >= 0)
        return gather.masked_mean(label_rows(logits, batch, smoothing), rows)

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Outputs of a pass: "logits", "embedding" (e = g(r) before the norm, and "representation"
        r), or "z" (with its logits); each with "present" [B]. A ":MODALITY" may follow."""
        kind, _, modality = what.partition(":")
        if modality not in ("", self.unknown):
            raise UserError(f"this run has no encoder of '{modality}', only of '{self.unknown}'")
        out = {"present": self.usable(batch)}
        if kind == "embedding":
            r = self.learner(batch.x[self.unknown])
            return out | {"embedding": self.projection(r).float(), "representation": r.float()}
        z = self.encode(batch.x[self.unknown])
        out["logits"] = self.classify(z)
        if kind == "z":
            out["z"] = z
        elif kind != "logits":
            raise ValueError(f"unknown kind of output '{what}'")
        return out

    def evaluation(self) -> StreamSpec:
        """A pass over the unknown modality of the evaluation split."""
        context = self.context
        return StreamSpec("evaluate", context.eval_split, (self.unknown,), context.batch)

    def score(self, out: Mapping[str, Tensor]) -> dict[str, float]:
        """Class-level "top1" and "top5" of a pass over the evaluation split."""
        truth = torch.from_numpy(self.context.labels[self.context.eval_split])
        rows = out["present"].bool()
        logits, truth = out["logits"][rows], truth[rows]
        return {f"top{k}": diagnostics.top_k_accuracy(logits, truth, k) for k in (1, 5)}

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """`score` on the evaluation split, from the unknown modality alone."""
        return self.score(passes.infer("logits", self.evaluation()))

    def export_parts(self, modality: str | None) -> ExportParts:
        """The encoder of the unknown modality with its projection and classifier.

        Raises:
            UserError: Another modality is asked for.
        """
        if modality not in (None, self.unknown):
            raise UserError(
                f"this run trained no encoder of '{modality}'{nearest(modality, [self.unknown])}"
            )
        return ExportParts(self.learner, self.projection, self.classifier, self.norm)


class Baseline(Supervised):
    """A comparator: the learner of COX without any known modality."""

    def __init__(self, context: Context, config: BaselineConfig) -> None:
        super().__init__(context, config, norm=config.feat_norm, label_draw=config.label_draw)


def cross_entropy_rows(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """[B] cross-entropies in fp32; rows without a label (-1) are 0 and must be masked out."""
    return F.cross_entropy(
        logits.float(), label, ignore_index=-1, reduction="none", label_smoothing=smoothing
    )


def label_rows(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """`cross_entropy_rows` of a batch; where rows were mixed, with the labels' shares."""
    own = cross_entropy_rows(logits, batch.label, smoothing)
    if batch.mixed is None:
        return own
    other = cross_entropy_rows(logits, batch.mixed.label, smoothing)
    share = batch.mixed.share
    return share * own + (1.0 - share) * other
