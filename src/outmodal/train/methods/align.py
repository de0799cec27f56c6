"""Pairwise CLIP over the learners' modalities (Radford et al., ICML 2021): the sum over all pairs
of modalities of the symmetric contrastive loss, positives included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.base import Config
from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.models.features import unit_norm
from outmodal.models.heads import HeadConfig, ProjectionHead
from outmodal.models.objectives.clip import clip_loss
from outmodal.train import gather
from outmodal.train.methods.align_report import class_means, retrieval, zero_shot
from outmodal.train.methods.base import Context, Method, Passes, Stage, StepOutput
from outmodal.train.methods.labelled import find_learner, stream
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.terms import weighted

LARGEST_SCALE = 100.0  # CLIP's bound on the inverse temperature


class AlignConfig(Config):
    """Contrastive alignment of paired modalities.

    Attributes:
        modalities: Which learners to align, two or more; () is all of the run's.
        head: Projection of each learner into the shared space.
        temperature: Initial temperature; its inverse is learned, up to 100.
        prototypes: Whether evaluation also classifies each modality by the class means of each
            other one on the training split.
    """

    name: Literal["align"] = "align"
    modalities: tuple[str, ...] = ()
    head: HeadConfig = HeadConfig()
    temperature: float = Field(default=0.07, gt=0.0)
    prototypes: bool = True

    def build(self, context: Context) -> Align:
        """Make the method for a run."""
        return Align(context, self)


class Align(Method):
    """x^m -> r^m -> e^m; sum over pairs of CE(e^i e^j / tau) both ways, on unit vectors.

    Attributes:
        modalities: Names, in the order of the heads and learners.
        log_scale: log of the inverse temperature, learned.
    """

    def __init__(self, context: Context, config: AlignConfig) -> None:
        super().__init__(context)
        self.config = config
        self.modalities = config.modalities or tuple(context.learners)
        if len(set(self.modalities)) < 2:
            raise UserError(
                f"method align needs two or more learners, got {', '.join(self.modalities) or '-'}"
                ": add entries to `learners`, or name others in method.modalities"
            )
        learners = [find_learner(context, m, "method.modalities") for m in self.modalities]
        self.learners = nn.ModuleList(learners)
        head = config.head
        self.projections = nn.ModuleList(
            ProjectionHead(f.dim, head.dim, head.kind, head.hidden) for f in learners
        )
        self.log_scale = nn.Parameter(torch.tensor([math.log(1.0 / config.temperature)]))

    def stages(self) -> Sequence[Stage]:
        return [Stage("align", self.context.epochs)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        return [stream(self.context, "paired", self.modalities)]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches["paired"]
        units = {m: unit_norm(self.embed(m, batch.x[m])) for m in self.modalities}
        everyone = {m: gather.gather_with_grad(e) for m, e in units.items()}
        held = {m: batch.valid & batch.present[m] for m in self.modalities}
        scale = self.log_scale.float().exp().clamp(max=LARGEST_SCALE)[0]
        terms = {}
        for a, b in combinations(self.modalities, 2):
            present = held[a] & held[b]
            terms[f"{a}_{b}"] = clip_loss(
                units[a],
                units[b],
                scale,
                everyone[a],
                everyone[b],
                offset=gather.row_offset(len(batch)),
                present=present,
                all_present=gather.all_gather_rows(present),
            )
        out = weighted(terms)
        return StepOutput(out.loss, {**out.logs, "logit_scale": scale.detach()})

    def embed(self, modality: str, x: Tensor) -> Tensor:
        """e [B, dim] of inputs of one modality, not normalised."""
        place = self._place(modality)
        e: Tensor = self.projections[place](self.learners[place](x))
        return e

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Give "embedding:MODALITY" as {"embedding": e, "representation": r, "present"}, or
        "embedding", the unit vectors of all modalities, as {"embedding:NAME", "present:NAME"}."""
        kind, _, modality = what.partition(":")
        if kind != "embedding":
            raise ValueError(f"align gives embeddings, not '{what}'")
        if modality:
            place = self._place(modality)
            r = self.learners[place](batch.x[modality])
            return {
                "embedding": self.projections[place](r).float(),
                "representation": r.float(),
                "present": batch.valid & batch.present[modality],
            }
        out = {}
        for m in self.modalities:
            out[f"embedding:{m}"] = unit_norm(self.embed(m, batch.x[m]))
            out[f"present:{m}"] = batch.valid & batch.present[m]
        return out

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """For each ordered pair A, B of modalities on the evaluation split: "A_to_B/r1_instance",
        "A_to_B/r1_class" (retrieval), and "A_to_B/zero_shot" (nearest class mean of B on the
        training split)."""
        context = self.context
        spec = StreamSpec("evaluate", context.eval_split, self.modalities, context.batch)
        out = passes.infer("embedding", spec)
        truth = torch.from_numpy(context.labels[context.eval_split])
        means = self._prototypes(passes) if self.config.prototypes and context.classes else {}
        metrics: dict[str, float] = {}
        for a, b in permutations(self.modalities, 2):
            both = out[f"present:{a}"].bool() & out[f"present:{b}"].bool()
            e_a, e_b = out[f"embedding:{a}"][both], out[f"embedding:{b}"][both]
            found = retrieval(e_a, e_b, truth[both])
            if b in means:
                found |= zero_shot(e_a, means[b], truth[both])
            metrics |= {f"{a}_to_{b}/{name}": value for name, value in found.items()}
        return metrics

    def _prototypes(self, passes: Passes) -> dict[str, Tensor]:
        """Modality -> [C, d] mean unit embedding of each class on the training split."""
        out = passes.infer("embedding", stream(self.context, "prototypes", self.modalities))
        label = torch.from_numpy(self.context.labels[self.context.train_split])
        count = len(self.context.classes)
        return {
            m: class_means(
                out[f"embedding:{m}"], torch.where(out[f"present:{m}"].bool(), label, -1), count
            )
            for m in self.modalities
        }

    def _place(self, modality: str) -> int:
        if modality not in self.modalities:
            raise UserError(
                f"this run has no encoder of '{modality}'{nearest(modality, self.modalities)}"
            )
        return self.modalities.index(modality)

    def export_parts(self, modality: str | None) -> ExportParts:
        """One modality's encoder with its projection.

        Raises:
            UserError: No modality is named, or one that the run does not have.
        """
        if modality is None:
            raise UserError(
                f"this run trained several encoders: name one of {', '.join(self.modalities)}"
            )
        place = self._place(modality)
        head = self.projections[place]
        assert isinstance(head, ProjectionHead)
        return ExportParts(self.context.learners[modality], head, None, "l2")
