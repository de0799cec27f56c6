"""FreeMatch: the strong view of a sample learns the label that its weak view is sure of, where how
sure is sure enough follows from the predictions themselves, class by class.

Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning" (ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec, View
from outmodal.models.objectives.freematch import class_histogram, fairness, kept_rows
from outmodal.train import gather
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.labelled import BaselineConfig, stream
from outmodal.train.methods.supervised import cross_entropy_rows
from outmodal.train.methods.terms import logged
from outmodal.train.methods.unlabelled import Unlabelled, check_views, present

VIEWS, WEAK, STRONG = "unlabelled", "weak", "strong"


class FreeMatchConfig(BaselineConfig):
    """Self-adaptive thresholds and class fairness.

    Attributes:
        unlabelled_ratio: Unlabelled samples of a step for each labelled one.
        ema: Decay of the running means that make the thresholds.
        lambda_unlabelled: Weight of the cross-entropy on the strong views.
        lambda_fairness: Weight of the fairness term.
    """

    name: Literal["freematch"] = "freematch"
    unlabelled_ratio: int = Field(default=7, ge=1)
    ema: float = Field(default=0.999, ge=0.0, lt=1.0)
    lambda_unlabelled: float = Field(default=1.0, ge=0.0)
    lambda_fairness: float = Field(default=0.01, ge=0.0)

    def build(self, context: Context) -> FreeMatch:
        """Make the method for a run."""
        return FreeMatch(context, self)


class Levels:
    """Running means over the weak views of all ranks, fp32 on the CPU, equal everywhere.

    Attributes:
        level: [1] mean of the largest probability.
        prior: [C] mean prediction.
        histogram: [C] mean share of each class among the hard labels.
    """

    def __init__(self, classes: int, decay: float) -> None:
        self.decay = decay
        self.level, self.prior, self.histogram = (
            torch.full((n,), 1.0 / classes) for n in (1, classes, classes)
        )

    def see(self, q: Tensor, share: float) -> None:
        """Move by predictions q [B, C] of the global batch, which are `share` of a step's."""
        if not len(q):
            return
        confidence, label = q.float().cpu().max(dim=1)
        weight = 1.0 - self.decay**share
        self.level = self.level.lerp(confidence.mean()[None], weight)
        self.prior = self.prior.lerp(q.float().cpu().mean(dim=0), weight)
        self.histogram = self.histogram.lerp(class_histogram(label, len(self.prior)), weight)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"level": self.level, "prior": self.prior, "histogram": self.histogram}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.level, self.prior, self.histogram = (
            state[name].clone() for name in ("level", "prior", "histogram")
        )


class FreeMatch(Unlabelled):
    """min CE on the labelled + lambda * CE of strong views + lambda' * fairness."""

    def __init__(self, context: Context, config: FreeMatchConfig) -> None:
        super().__init__(context, config)
        check_views(self.learner, config.name, "augment", "strong")
        self.config = config
        self.levels = Levels(len(context.classes), config.ema)

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        context, supervision = self.context, self.supervision
        looks = (View(WEAK, self.unknown), View(STRONG, self.unknown, "strong"))
        count = self.config.unlabelled_ratio * context.batch
        return [
            stream(context, "labelled", (self.unknown,), supervision.labelled),
            StreamSpec(VIEWS, context.train_split, (), count, supervision.unlabelled, looks),
        ]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        labelled, views = batches["labelled"], batches.get(VIEWS)
        looks = {} if views is None else {name: views.x[name] for name in (WEAK, STRONG)}
        encoded = self.encode_parts({"labelled": labelled.x[self.unknown], **looks})
        logs = {"loss/supervised": self.supervised_loss(labelled, encoded["labelled"][2])}
        loss = logs["loss/supervised"]
        if views is not None:  # absent when every training sample is labelled
            found = self._unlabelled(views, encoded[WEAK][2], encoded[STRONG][2])
            logs |= found
            loss = loss + self.config.lambda_unlabelled * found["loss/unlabelled"]
            loss = loss + self.config.lambda_fairness * found["loss/fairness"]
        return logged(loss, logs)

    def _unlabelled(self, views: Batch, weak: Tensor, strong: Tensor) -> dict[str, Tensor]:
        """The two terms of the unlabelled views, the share that is kept, and the global level."""
        rows = views.valid & present(views)
        q = weak.detach().float().softmax(dim=1)
        whole = self.config.unlabelled_ratio * self.context.batch
        share = self.share(views, whole)
        self.levels.see(gather.all_gather_rows(q)[gather.all_gather_rows(rows)], share)
        level, prior = self.levels.level.to(q.device), self.levels.prior.to(q.device)
        label, sure = kept_rows(q, level, prior)
        losses = torch.where(sure, cross_entropy_rows(strong, label), 0.0)
        return {
            "loss/unlabelled": gather.masked_mean(losses, rows),
            "loss/fairness": self._fairness(strong, rows & sure, prior),
            "kept": gather.global_mean(sure.float(), rows),
            "level": level.mean(),
        }

    def _fairness(self, strong: Tensor, rows: Tensor, prior: Tensor) -> Tensor:
        """Of the kept strong views of the global batch; a zero with a graph where none is kept."""
        everywhere = gather.all_gather_rows(rows)
        q = gather.gather_with_grad(strong.float().softmax(dim=1))
        if not bool(everywhere.any()):
            return q.sum() * 0.0
        kept = q[everywhere]
        shares = class_histogram(kept.argmax(dim=1), kept.shape[1])
        return fairness(prior, self.levels.histogram.to(q.device), kept.mean(dim=0), shares)

    def method_state(self) -> dict[str, Tensor]:
        return self.levels.state()

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        self.levels.load(state)
