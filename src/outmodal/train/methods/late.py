"""Late fusion: a linear classifier on every modality, and the mean of what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.data.batch import Batch
from outmodal.errors import UserError
from outmodal.models.heads import linear_classifier
from outmodal.train.methods.base import Context
from outmodal.train.methods.fusion import Fusion, FusionConfig
from outmodal.train.methods.supervised import apply_linear

Fuse = Literal["mean_logits", "mean_probs"]
Answer = Literal["class", "multilabel"]


class LateConfig(FusionConfig):
    """Keys of late fusion.

    Attributes:
        fuse: How single modalities' outputs become one: the mean of logits, or the mean of
            probabilities.
    """

    fuse: Fuse = "mean_logits"


class AnswerConfig(LateConfig):
    """Keys of the methods that also learn several labels a sample.

    Attributes:
        answer: "class" learns the one class of a sample by cross-entropy. "multilabel" learns the
            vector of zeros and ones in `.target.npy`, an entry for each of the data set's classes,
            by binary cross-entropy, and is judged by micro-F1.
    """

    answer: Answer = "class"


class LateFusion(Fusion):
    """l = mean_m phi_m(x^m), with phi_m a learner and a linear head.

    Attributes:
        heads: r^m -> logits [B, outputs], in the order of the modalities.
    """

    def __init__(
        self, context: Context, config: LateConfig, *, answer: Answer = "class", extra: int = 0
    ) -> None:
        self.multilabel = answer == "multilabel"
        super().__init__(context, config)
        self.fuse: Fuse = config.fuse
        outputs = len(context.classes) + extra
        self.heads = nn.ModuleList(
            linear_classifier(self.dims[m], outputs) for m in self.modalities
        )
        self.metric = "micro_f1" if self.multilabel else "top1"

    def outputs(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Representations of some modalities -> what each one's head says [B, outputs], fp32."""
        return {m: apply_linear(self.heads[self.place(m)], r[m]) for m in r}

    def alone(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.outputs(r)

    def fused(self, r: Mapping[str, Tensor]) -> Tensor:
        return self.together(list(self.alone(r).values()))

    def together(self, logits: Sequence[Tensor]) -> Tensor:
        """Single modalities' logits, each [B, C] -> fused ones."""
        stacked = torch.stack(list(logits))
        if self.fuse == "mean_logits":
            return stacked.mean(dim=0)
        if not self.multilabel:
            return _log_mean(F.log_softmax(stacked, dim=-1))
        return _log_mean(F.logsigmoid(stacked)) - _log_mean(F.logsigmoid(-stacked))

    def classifier(self, modality: str) -> nn.Linear | None:
        head = self.heads[self.place(modality)]
        assert isinstance(head, nn.Linear)
        return head

    # --- several labels a sample -------------------------------------------------------------

    def check_answers(self) -> None:
        if not self.multilabel:
            super().check_answers()
        elif not self.context.classes:
            raise UserError(
                "method.answer multilabel needs a name for each entry of the `.target.npy` "
                "vectors: list them as classes in the data set's manifest"
            )

    def answered(self, batch: Batch) -> Tensor:
        if not self.multilabel:
            return super().answered(batch)
        return self.usable(batch) & torch.isfinite(self._targets(batch)).all(dim=1)

    def loss_rows(self, logits: Tensor, batch: Batch) -> Tensor:
        if not self.multilabel:
            return super().loss_rows(logits, batch)
        truth = torch.nan_to_num(self._targets(batch))
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=1)

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        out = super().infer(what, batch)
        return out | {"target": self._targets(batch)} if self.multilabel else out

    def rate(self, logits: Tensor, out: Mapping[str, Tensor], rows: Tensor) -> float:
        if not self.multilabel:
            return super().rate(logits, out, rows)
        known = rows & torch.isfinite(out["target"]).all(dim=1)
        return micro_f1(logits[known] > 0, out["target"][known] > 0.5)

    def _targets(self, batch: Batch) -> Tensor:
        """[B, C] fp32, NaN where a sample has none."""
        count = len(self.context.classes)
        if batch.target is None:
            return torch.full((len(batch), count), torch.nan, device=batch.index.device)
        flat = batch.target.float().flatten(1)
        if flat.shape[1] != count or bool(((flat < 0) | (flat > 1)).any()):
            raise UserError(
                f"method.answer multilabel reads `.target.npy` vectors of {count} numbers from 0 "
                f"to 1, one for each class, and found {flat.shape[1]} numbers or others: write "
                "such vectors, or set method.answer class"
            )
        return flat

    def check_samples(self, presence: Tensor, answered: Tensor) -> None:
        super().check_samples(presence, answered)
        if self.multilabel and not bool(answered.any()):
            raise UserError(
                f"none of {len(answered)} samples spread over the training split has a "
                "`.target.npy` for method.answer multilabel: add them, or set method.answer class"
            )


def _log_mean(logs: Tensor) -> Tensor:
    """log of the mean of exp over the first axis."""
    return torch.logsumexp(logs, dim=0) - math.log(len(logs))


def micro_f1(said: Tensor, truth: Tensor) -> float:
    """F1 of all entries together of bool [N, C] tables; NaN where there is no row.

    >>> micro_f1(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]]))
    0.6666666666666666
    """
    if not said.numel():
        return float("nan")
    hits = 2.0 * float((said & truth).sum())
    every = float(said.sum() + truth.sum())
    return hits / every if every else 0.0
