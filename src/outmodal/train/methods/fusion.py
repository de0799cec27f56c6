"""Supervised fusion of several modalities: what all of its methods share.

    x^m -> r^m = f_m(x^m) -> logits = fused(r^1 .. r^M)

A modality that a sample lacks, or that a method takes away, is not marked as missing: its encoder
receives a *substitute input* without information, which the input's own transform gives. Every
such method is judged alike: with complete inputs, with each modality in turn replaced for every
sample, and by the mean of these (Li et al., "What Makes for Robust Multi-Modal Models in the Face
of Missing Modalities?", 2023, Table 1).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.models.learners import Learner
from outmodal.train import diagnostics, gather
from outmodal.train.methods.base import Context, Method, Passes, Stage
from outmodal.train.methods.fusion_checks import (
    fused_modalities,
    look,
    require_classes,
    require_samples,
)
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.settings import MethodSettings
from outmodal.train.methods.supervised import cross_entropy_rows

FUSED = "fused"
"""Name of the stream over the training split."""

Substitute = Literal["normalized", "raw"]


class FusionConfig(MethodSettings):
    """Keys of every method that classifies several modalities together.

    Attributes:
        modalities: What is fused, in order: learners' modalities, and vectors of the data set. ()
            is all learners' (all vectors where there is no learner).
        sub_stage: What stands for a missing modality: zeros in the tensor that its encoder
            receives (normalized), or what its input makes of zeros before it normalises (raw). A
            text is a single blank in both.
        lr_scale: Modality -> factor on the learning rate of its encoder; 1 where it is not named.
    """

    modalities: tuple[str, ...] = ()
    sub_stage: Substitute = "normalized"
    lr_scale: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default={})


class Fusion(Method):
    """Base of the methods that classify several modalities together.

    A subclass gives `forward` and `fused`; `stages` where it has several; `alone` and `classifier`
    where it has heads for single modalities.

    Attributes:
        least: Fewest modalities that the method makes sense with.
        pairs_needed: Whether training makes no sense where no sample has two of them.
        metric: Name of what `rate` measures.
        modalities: Names, in the order of the learners.
        learners: x -> r; a vector modality's is the identity.
        dims: modality -> size of r.
    """

    least = 2
    pairs_needed = True
    metric = "top1"

    def __init__(self, context: Context, config: FusionConfig) -> None:
        super().__init__(context)
        self.config = config
        self.modalities = fused_modalities(
            context, config.modalities, tuple(config.lr_scale), self.least
        )
        self.check_answers()
        self.learners = nn.ModuleList(
            context.learners.get(m) or nn.Identity() for m in self.modalities
        )
        self.dims = {
            m: context.learners[m].dim if m in context.learners else context.dims[m]
            for m in self.modalities
        }
        self.raw_substitutes = config.sub_stage == "raw"
        self._blanks: dict[str, Tensor] = {}

    def check_answers(self) -> None:
        """Raise UserError where the training split has not the answers that the loss needs."""
        require_classes(self.context)

    # --- what a subclass says ----------------------------------------------------------------

    @abstractmethod
    def fused(self, r: Mapping[str, Tensor]) -> Tensor:
        """Representations of all modalities -> logits [B, C], fp32."""

    def alone(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Representations of some modalities -> each one's logits [B, C] by itself, fp32; {} where
        the method has no classifier of single modalities."""
        return {}

    def classifier(self, modality: str) -> nn.Linear | None:
        """The layer behind `alone`, r -> logits [B, C], for an export; None without."""
        return None

    # --- inputs and representations ----------------------------------------------------------

    def stages(self) -> Sequence[Stage]:
        return [Stage("train", self.context.epochs)]

    def streams(self, stage: str) -> list[StreamSpec]:
        return [stream(self.context, FUSED, self.modalities)]

    def substitute(self, modality: str, like: Tensor) -> Tensor:
        """The input without information, [1, ...], of the type and on the device of `like`."""
        if modality not in self._blanks:
            transform = self.context.inputs.get(modality)
            zeros = like.new_zeros(like.shape[1:])  # of a batch without rows too
            x = zeros if transform is None else self._blank(modality)
            self._blanks[modality] = x[None]
        held = self._blanks[modality]
        if held.device != like.device or held.dtype != like.dtype:
            held = self._blanks[modality] = held.to(like.device, like.dtype)
        return held

    def _blank(self, modality: str) -> Tensor:
        return self.context.inputs[modality].blank(raw=self.raw_substitutes)

    def shown(self, modality: str, batch: Batch, gone: Tensor | None = None) -> Tensor:
        """Inputs [B, ...] of a modality with the substitute in rows that lack it.

        Args:
            modality: Its name.
            batch: The samples.
            gone: [B] bool, further rows that lose it.
        """
        x = batch.x[modality]
        lacking = ~batch.present[modality]
        if gone is not None:
            lacking = lacking | gone
        shape = (-1, *[1] * (x.ndim - 1))
        return torch.where(lacking.view(shape), self.substitute(modality, x), x)

    def encode(self, modality: str, x: Tensor) -> Tensor:
        """Inputs -> representation r [B, d_m]."""
        r: Tensor = self.learners[self.place(modality)](x)
        return r

    def representations(
        self, batch: Batch, gone: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """modality -> r [B, d_m] of all modalities, substitutes where a sample lacks one.

        Args:
            batch: The samples.
            gone: modality -> [B] bool, rows that lose it beside those that lack it.
        """
        taken = gone or {}
        return {m: self.encode(m, self.shown(m, batch, taken.get(m))) for m in self.modalities}

    def presence(self, batch: Batch) -> Tensor:
        """[B, M] bool: which modalities each sample has."""
        return torch.stack([batch.present[m] for m in self.modalities], dim=1)

    def usable(self, batch: Batch) -> Tensor:
        """[B] bool: rows that are real and hold a modality."""
        return batch.valid & self.presence(batch).any(dim=1)

    def place(self, modality: str) -> int:
        """Number of a modality.

        Raises:
            UserError: It is none of the run's.
        """
        if modality not in self.modalities:
            raise UserError(
                f"this run has no encoder of '{modality}'{nearest(modality, self.modalities)}"
            )
        return self.modalities.index(modality)

    # --- the loss ----------------------------------------------------------------------------

    def answered(self, batch: Batch) -> Tensor:
        """[B] bool: usable rows with an answer to learn from."""
        return self.usable(batch) & (batch.label >= 0)

    def loss_rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """[B] cross-entropies, fp32; rows without an answer must be masked out."""
        return cross_entropy_rows(logits, batch.label)

    def mean_loss(self, logits: Tensor, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Mean of `loss_rows` over the answered rows (of these) of the global batch."""
        chosen = self.answered(batch)
        if rows is not None:
            chosen = chosen & rows
        return gather.masked_mean(self.loss_rows(logits, batch), chosen)

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Before the first epoch, refuse training samples that cannot be learned from."""

        def see(spec: StreamSpec) -> None:
            out = passes.infer("presence", spec)
            self.check_samples(out["presence"].bool(), out["answered"].bool())

        if epoch == 0:
            look(self.context, self.modalities, see)
        return {}

    def check_samples(self, presence: Tensor, answered: Tensor) -> None:
        """Raise UserError where samples spread over the training split cannot be learned from.

        Args:
            presence: [n, M] bool, which modalities they have.
            answered: [n] bool, whether they have an answer.
        """
        if self.pairs_needed and len(self.modalities) > 1:
            require_samples(presence, 2, self.modalities)

    def param_groups(self) -> list[dict[str, Any]]:
        """One group for each encoder, with its learning rate, and one for the rest."""
        groups: list[dict[str, Any]] = []
        for m, learner in zip(self.modalities, self.learners, strict=True):
            scale = self.config.lr_scale.get(m, 1.0)
            params = [p for p in learner.parameters() if p.requires_grad]
            groups.append({"name": f"encoder:{m}", "params": params, "lr_scale": scale})
        held = {id(p) for g in groups for p in g["params"]}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in held]
        return [*groups, {"name": "heads", "params": rest}]

    # --- evaluation --------------------------------------------------------------------------

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Outputs of a pass, with "present" [B] (usable rows, or those that hold the modality).

        "logits": fused, [B, C]. "logits:MODALITY": of one modality alone.
        "missing": "complete", "miss:MODALITY" with a substitute for every sample, and
        "only:MODALITY" (with "present:MODALITY") of single modalities.
        "embedding:MODALITY": "embedding" and "representation", both r.
        "presence": which modalities samples have, [B, M], and whether they are "answered" [B].
        """
        if what == "presence":
            return {"presence": self.presence(batch), "answered": self.answered(batch)}
        kind, _, modality = what.partition(":")
        if modality and kind in ("logits", "embedding"):
            return self._infer_one(kind, modality, batch)
        if kind not in ("logits", "missing") or modality:
            raise ValueError(f"unknown kind of output '{what}'")
        r, out = self.representations(batch), {"present": self.usable(batch)}
        if kind == "logits":
            return out | {"logits": self.fused(r)}
        return out | self._infer_missing(r, batch)

    def _infer_one(self, kind: str, modality: str, batch: Batch) -> dict[str, Tensor]:
        self.place(modality)
        r = self.encode(modality, self.shown(modality, batch))
        out = {"present": batch.valid & batch.present[modality]}
        if kind == "embedding":
            return out | {"embedding": r.float(), "representation": r.float()}
        found = self.alone({modality: r})
        if modality not in found:
            raise UserError(f"this run's method has no classifier of '{modality}' alone")
        return out | {"logits": found[modality]}

    def _infer_missing(self, r: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        out = {"complete": self.fused(r)}
        if len(self.modalities) > 1:
            for m in self.modalities:
                blank = self.encode(m, self.substitute(m, batch.x[m]))
                out[f"miss:{m}"] = self.fused({**r, m: blank.expand_as(r[m])})
        for m, logits in self.alone(r).items():
            out[f"only:{m}"] = logits
            out[f"present:{m}"] = batch.valid & batch.present[m]
        return out

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """On the evaluation split: "top1" with complete inputs, "miss_M/top1" without each M,
        "average/top1" of these, and "only_M/top1" of M's own classifier, where it has one."""
        context = self.context
        spec = StreamSpec("evaluate", context.eval_split, self.modalities, context.batch)
        out, name = passes.infer("missing", spec), self.metric
        usable = out["present"].bool()
        found = {name: self.rate(out["complete"], out, usable)}
        missing = [m for m in self.modalities if f"miss:{m}" in out]
        for m in missing:
            found[f"miss_{m}/{name}"] = self.rate(out[f"miss:{m}"], out, usable)
        if missing:
            found[f"average/{name}"] = sum(found.values()) / len(found)
        for m in self.modalities:
            if f"only:{m}" in out:
                rows = out[f"present:{m}"].bool()
                found[f"only_{m}/{name}"] = self.rate(out[f"only:{m}"], out, rows)
        return found

    def rate(self, logits: Tensor, out: Mapping[str, Tensor], rows: Tensor) -> float:
        """How good logits [N, C] of a pass over the evaluation split are, in 0..1, over `rows`
        [N] bool with an answer; NaN where there is none."""
        truth = torch.from_numpy(self.context.labels[self.context.eval_split])
        return diagnostics.top_k_accuracy(logits[rows], truth[rows], 1)

    def export_parts(self, modality: str | None) -> ExportParts:
        """One modality's encoder, with its own classifier where it has one.

        Raises:
            UserError: No modality is named, one that the run does not have, or one without a
                learner.
        """
        learned = [m for m in self.modalities if m in self.context.learners]
        if modality is None and len(self.modalities) == 1:
            modality = self.modalities[0]
        if modality is None:
            raise UserError(f"this run trained several encoders: name one of {', '.join(learned)}")
        learner = self.learners[self.place(modality)]
        if not isinstance(learner, Learner):
            raise UserError(
                f"'{modality}' is a vector of the data set, which no learner of this run makes: "
                f"export one of {', '.join(learned) or '- (it has none)'}"
            )
        return ExportParts(learner, None, self.classifier(modality), "none")
