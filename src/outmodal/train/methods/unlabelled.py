"""What the comparators share that learn one modality from many samples without a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from outmodal.data.batch import Batch, Policy
from outmodal.errors import UserError
from outmodal.models.features import feature_norm
from outmodal.models.learners import Learner
from outmodal.train import diagnostics, gather
from outmodal.train.clustering import matched
from outmodal.train.methods.base import Context, Passes, Stage
from outmodal.train.methods.labelled import BaselineConfig
from outmodal.train.methods.supervised import Supervised

Encoded = tuple[Tensor, Tensor, Tensor]
"""r [n, d_r], z [n, d], logits [n, C] of some rows."""


class UnlabelledConfig(BaselineConfig):
    """Keys of the comparators that also run without any label.

    Attributes:
        setting: semi: few labelled samples. unsup: no label at all (`label_fraction` and
            `label_draw` mean nothing then); as its classes have no names, evaluation reports the
            accuracy as it is, and under the best one-to-one naming ("matched/top1").
    """

    setting: Literal["semi", "unsup"] = "semi"


class Unlabelled(Supervised):
    """Base of the comparators with unlabelled samples.

    Attributes:
        unsupervised: No sample shows its label.
        hidden: [N] bool, training samples whose label may not be used.
    """

    def __init__(self, context: Context, config: BaselineConfig) -> None:
        self.unsupervised = isinstance(config, UnlabelledConfig) and config.setting == "unsup"
        super().__init__(
            context,
            config,
            norm=config.feat_norm,
            label_draw=config.label_draw,
            fraction=0.0 if self.unsupervised else None,
        )
        self.hidden = torch.zeros(len(self.supervision.labels), dtype=torch.bool)
        self.hidden[torch.from_numpy(self.supervision.unlabelled)] = True

    def stages(self) -> Sequence[Stage]:
        return [Stage("train", self.context.epochs)]

    def encode_parts(self, parts: Mapping[str, Tensor]) -> dict[str, Encoded]:
        """Representations, features and logits of several inputs in one pass of the learner."""
        r = self.learner(torch.cat(list(parts.values())))
        return self.split_parts(r, {name: len(x) for name, x in parts.items()})

    def split_parts(self, r: Tensor, sizes: Mapping[str, int]) -> dict[str, Encoded]:
        """The same from representations [sum of sizes, d_r]."""
        z = feature_norm(self.projection(r), self.norm)
        columns = [torch.split(t, list(sizes.values())) for t in (r, z, self.classify(z))]
        return dict(zip(sizes, zip(*columns, strict=True), strict=True))

    def unlabelled_rows(self, batch: Batch) -> Tensor:
        """[B] bool: rows that hold the modality and whose label may not be used."""
        there = batch.valid & present(batch)
        return there & self.hidden[batch.index.clamp_min(0).cpu()].to(there.device)

    def share(self, batch: Batch, whole: int) -> float:
        """Which part of a step's `whole` rows over all ranks this forward holds: 1 unless the step
        is cut into micro-batches. Collective."""
        return len(gather.all_gather_rows(batch.valid)) / whole

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """`score`, and where there were no labels "matched/top1"."""
        out = passes.infer("logits", self.evaluation())
        found = self.score(out)
        if self.unsupervised:
            rows = out["present"].bool()
            found["matched/top1"] = self.named(out["logits"][rows].argmax(dim=1), rows)
        return found

    def named(self, guess: Tensor, rows: Tensor) -> float:
        """Accuracy of guessed numbers under their best one-to-one naming (Hungarian method).

        It is above 1 / classes whatever is guessed: read it beside that of an untrained model.

        Args:
            guess: [n] 0 .. C - 1, of the evaluation split's samples that are in `rows`.
            rows: [N] bool.
        """
        truth = torch.from_numpy(self.context.labels[self.context.eval_split])[rows]
        names = matched(guess, truth, len(self.context.classes))
        return diagnostics.accuracy(names[truth >= 0], truth[truth >= 0])


def present(batch: Batch) -> Tensor:
    """[B] bool: rows that hold every modality and view of the batch."""
    return torch.stack(list(batch.present.values())).all(dim=0)


def check_views(learner: Learner, method: str, *policies: Policy) -> None:
    """Raise UserError where a learner's input has no augmentation for a view to be drawn by."""
    given = getattr(getattr(learner, "config", None), "input", None)
    for policy in policies:
        if not getattr(given, policy, ()):
            raise UserError(
                f"method '{method}' compares randomly changed views of a sample, and the input of "
                f"learner '{learner.modality}' has an empty list `{policy}`: name augmentations "
                f"under learners, input, {policy} (docs/augmentation.md lists those that fit)"
            )
