"""Alignment of paired modalities: encoders and heads into one space, under any of the objectives
of `models.objectives`, exact on the global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.models.features import feature_norm, unit_norm
from outmodal.models.heads import ProjectionHead
from outmodal.models.objectives import Objective
from outmodal.train import gather
from outmodal.train.methods.align_config import AlignConfig, aligned_modalities
from outmodal.train.methods.align_report import class_means, retrieval, zero_shot
from outmodal.train.methods.base import Context, Passes, Stage, StepOutput, WholeBatchMethod
from outmodal.train.methods.discrepancy import discrepancy, probed
from outmodal.train.methods.fusion_checks import look, require_samples
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.terms import logged
from outmodal.train.retrieval import score_by

__all__ = ["Align", "AlignConfig"]


class Align(WholeBatchMethod):
    """x^m -> r^m -> e^m -> unit vectors -> the objective.

    Attributes:
        modalities: Names, in the order of the heads and learners.
        learners: x -> r; a vector modality's is the identity, or `method.vector_norm`.
        projections: r -> e; a headless modality's is the identity.
        contrast: The objective, with what it learns.
    """

    def __init__(self, context: Context, config: AlignConfig) -> None:
        super().__init__(context)
        self.config = config
        self.modalities = aligned_modalities(context, config)
        self.learners = nn.ModuleList(
            context.learners.get(m) or _Vector(config) for m in self.modalities
        )
        self.projections = nn.ModuleList(self._head(m) for m in self.modalities)
        self.contrast: Objective = config.objective.build(self.modalities, config.head.dim)
        self._finite: Tensor | None = None

    def _head(self, modality: str) -> nn.Module:
        if modality in self.config.headless:
            return nn.Identity()
        learner, head = self.context.learners.get(modality), self.config.head
        size = self.context.dims[modality] if learner is None else learner.dim
        return ProjectionHead(size, head.dim, head.kind, head.hidden)

    def stages(self) -> Sequence[Stage]:
        return [Stage("align", self.context.epochs)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        return [stream(self.context, "paired", self.modalities)]

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Before the first epoch, refuse training samples of which none is a pair."""
        least = len(self.modalities) if self.contrast.together else 2

        def see(spec: StreamSpec) -> None:
            held = passes.infer("presence", spec)["presence"].bool()
            require_samples(held, least, self.modalities)

        if epoch == 0:
            look(self.context, self.modalities, see)
        return {}

    # --- one step ----------------------------------------------------------------------------

    def encode(self, batches: Mapping[str, Batch], stage: str, step: int) -> dict[str, Tensor]:
        """modality -> e [n, dim], not normalised; nothing without rows."""
        if "paired" not in batches:
            return {}
        x = batches["paired"].x
        return {m: self.embed(m, x[m]) for m in self.modalities}

    def objective(
        self, encoded: Mapping[str, Tensor], batches: Mapping[str, Batch], stage: str, step: int
    ) -> StepOutput:
        """The objective's loss of the unit embeddings, against the rows of all ranks."""
        batch = batches["paired"]
        embedded = [encoded[m] for m in self.modalities]
        self._finite = torch.stack([torch.isfinite(e.detach()).all() for e in embedded])
        out = self.contrast(
            {m: self._unit(encoded[m]) for m in self.modalities},
            {m: batch.valid & batch.present[m] for m in self.modalities},
            gather.exchange(self.config.exchange, even=True),
            step,
            raw={m: encoded[m].float() for m in self.modalities}
            if self.contrast.needs_raw
            else None,
        )
        return logged(out.loss, out.logs)

    def embed(self, modality: str, x: Tensor) -> Tensor:
        """e [B, dim] of inputs of one modality, not normalised."""
        place = self._place(modality)
        e: Tensor = self.projections[place](self.learners[place](x))
        return e

    def _unit(self, e: Tensor) -> Tensor:
        """Unit vectors in the precision that they are compared in."""
        half = self.config.similarity == "bf16" or (
            self.config.similarity == "auto" and e.is_cuda and e.dtype is torch.bfloat16
        )
        unit = unit_norm(e)
        return unit.to(torch.bfloat16) if half else unit

    def suspects(self) -> str:
        """Which modalities' embeddings were not finite in the last step. Collective."""
        if self._finite is None:
            return ""
        fine = gather.all_gather_flat(self._finite.float()).amin(dim=0).tolist()
        bad = [f"'{m}'" for m, ok in zip(self.modalities, fine, strict=True) if not ok]
        return f"embeddings of {', '.join(bad)} are not finite" if bad else ""

    # --- evaluation --------------------------------------------------------------------------

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Outputs of a pass.

        "embedding:MODALITY": {"embedding": e, "representation": r, "present"} of one modality.
        "embedding": unit vectors of all, as {"embedding:NAME", "present:NAME"}.
        "representation": r of all, as {"representation:NAME", "present:NAME"}.
        "presence": [B, M] bool, which modalities the rows have.
        """
        kind, _, modality = what.partition(":")
        if kind == "presence":
            held = torch.stack([batch.valid & batch.present[m] for m in self.modalities], dim=1)
            return {"presence": held}
        if kind not in ("embedding", "representation") or (modality and kind != "embedding"):
            raise ValueError(f"align gives embeddings and representations, not '{what}'")
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
            r = self.learners[self._place(m)](batch.x[m])
            unit = kind == "embedding"
            out[f"{kind}:{m}"] = (
                unit_norm(self.projections[self._place(m)](r)) if unit else r.float()
            )
            out[f"present:{m}"] = batch.valid & batch.present[m]
        return out

    def score(self, query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        """The objective's own score, [Q, C], higher is better; see `Objective.score`."""
        return self.contrast.score(query, candidates, target)

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """For each ordered pair A, B of modalities on the evaluation split: "A_to_B/r1_instance",
        "A_to_B/r1_class" (retrieval), and "A_to_B/zero_shot" (best class mean of B on the
        training split), by the objective's own score."""
        context, scorer = self.context, self._scorer(passes)
        spec = StreamSpec("evaluate", context.eval_split, self.modalities, context.batch)
        out = passes.infer("embedding", spec)
        truth = torch.from_numpy(context.labels[context.eval_split])
        means = self._prototypes(passes) if self.config.prototypes and context.classes else {}
        metrics: dict[str, float] = {}
        for a, b in permutations(self.modalities, 2):
            both = out[f"present:{a}"].bool() & out[f"present:{b}"].bool()
            units = {m: out[f"embedding:{m}"][both] for m in (a, b)}
            found = retrieval(score_by(scorer.score, units, (a,), b), truth[both])
            if b in means:
                found |= zero_shot(scorer.score({a: units[a]}, means[b], b), truth[both])
            metrics |= {f"{a}_to_{b}/{name}": value for name, value in found.items()}
        return metrics

    def diagnose(self, passes: Passes) -> dict[str, float]:
        """The gap and the MMD between each two modalities on the evaluation split."""
        context = self.context
        spec = StreamSpec(
            "diagnose", context.eval_split, self.modalities, context.batch, probed(context)
        )
        out = passes.infer("embedding", spec)
        return discrepancy(
            {m: out[f"embedding:{m}"][out[f"present:{m}"].bool()] for m in self.modalities}
        )

    def _scorer(self, passes: Passes) -> Objective:
        """The objective with whole weights on the CPU, where the outputs of passes are."""
        with torch.random.fork_rng(devices=[]):
            scorer = self.config.objective.build(self.modalities, self.config.head.dim)
        scorer.load_state_dict(passes.weights(self.contrast))
        return scorer.requires_grad_(False).eval()

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
            UserError: No modality is named, one that the run does not have, or one without a
                learner.
        """
        learned = [m for m in self.modalities if m in self.context.learners]
        if modality is None:
            raise UserError(f"this run trained several encoders: name one of {', '.join(learned)}")
        head = self.projections[self._place(modality)]
        if modality not in learned:
            raise UserError(
                f"'{modality}' is a vector of the data set, which no learner of this run makes: "
                f"export one of {', '.join(learned) or '- (it has none)'}"
            )
        assert isinstance(head, ProjectionHead)
        return ExportParts(self.context.learners[modality], head, None, "l2")


class _Vector(nn.Module):
    """A vector modality on the scale that `method.vector_norm` names."""

    def __init__(self, config: AlignConfig) -> None:
        super().__init__()
        self._norm = config.vector_norm

    def forward(self, x: Tensor) -> Tensor:
        return feature_norm(x, self._norm)
