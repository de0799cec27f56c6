"""MMPareto: gradients of the joint and of each modality's own loss combined without conflict (Wei
and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.data.batch import Batch
from outmodal.models.heads import linear_classifier
from outmodal.train import gather
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.concat import Concat
from outmodal.train.methods.fusion import FUSED, FusionConfig
from outmodal.train.methods.supervised import apply_linear
from outmodal.train.methods.terms import weighted


class MmParetoConfig(FusionConfig):
    """Pareto integration of gradients.

    Attributes:
        gamma: Factor on each encoder's combined gradient.
    """

    name: Literal["mmpareto"] = "mmpareto"
    gamma: float = Field(default=1.5, gt=0)

    def build(self, context: Context) -> MmPareto:
        """Make the method for a run."""
        return MmPareto(context, self)


class MmPareto(Concat):
    """min L_task + sum_m CE(linear_m(r^m), y), with the gradients of the encoders combined.

    The wrapper reduces the gradient G = g_mm + g_u of the sum. That of the joint loss alone, g_mm,
    is taken in the forward pass, kept on each rank, and averaged over ranks in `edit_gradients`.
    """

    def __init__(self, context: Context, config: MmParetoConfig) -> None:
        super().__init__(context, config)
        self.gamma = config.gamma
        self.heads = nn.ModuleList(
            linear_classifier(self.dims[m], len(context.classes)) for m in self.modalities
        )
        self._joint: dict[str, Tensor] = {}
        self._taken = 0

    def alone(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: apply_linear(self.heads[self.place(m)], t) for m, t in r.items()}

    def classifier(self, modality: str) -> nn.Linear | None:
        head = self.heads[self.place(modality)]
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        r = self.representations(batch)
        terms = {"task": self.mean_loss(self.fused(r), batch)}
        for m, logits in self.alone(r).items():
            terms[f"task_{m}"] = self.mean_loss(logits, batch, self.held(m, batch))
        if torch.is_grad_enabled():
            self._keep(terms["task"])
        return weighted(terms)

    def _keep(self, loss: Tensor) -> None:
        """Add the gradient of the joint loss by the encoders to that of the step."""
        names = [name for m in self.modalities for name in self.encoder_names(m)]
        params = [self.get_parameter(name) for name in names]
        if not params:  # of vectors alone
            return
        found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        for name, p, g in zip(names, params, found, strict=True):
            held = torch.zeros_like(p, dtype=torch.float32) if g is None else g.float()
            self._joint[name] = held + self._joint[name] if name in self._joint else held
        self._taken += 1

    def edit_gradients(self, gradients: dict[str, Tensor], stage: str, step: int) -> None:
        """Combine the two gradients of each encoder."""
        joint, count = self._joint, max(1, self._taken)
        self._joint, self._taken = {}, 0
        held = {name: g / count for name, g in joint.items() if name in gradients}
        gather.mean_tensors(list(held.values()))
        for m in self.modalities:
            names = [name for name in self.encoder_names(m) if name in held]
            if names:
                total = [gradients[name].float() for name in names]
                made = combined([held[name] for name in names], total, self.gamma)
                gradients.update(zip(names, made, strict=True))


def combined(joint: list[Tensor], total: list[Tensor], gamma: float) -> list[Tensor]:
    """The gradient to step with (the paper's algorithm 1).

    Args:
        joint: Gradients of the joint loss, one a parameter.
        total: Those of the sum of the joint and the modality's own loss.
        gamma: Factor on the result.
    """
    own = [t - g for t, g in zip(total, joint, strict=True)]
    share = weight(joint, own)
    out = []
    for g, u, t in zip(joint, own, total, strict=True):
        new = 2 * share * g + 2 * (1 - share) * u
        length = new.norm()
        grown = torch.where(length > 0, t.norm() / length, torch.ones_like(length)).clamp_min(1)
        out.append(new * grown * gamma)
    return out


def weight(joint: list[Tensor], own: list[Tensor]) -> Tensor:
    """Weight of the joint gradient, the other's is one minus it: a half where the two do not
    conflict, otherwise that of their convex combination with the least norm, in 0.001..0.999."""
    a, b = (torch.cat([t.flatten() for t in part]).double() for part in (joint, own))
    inner, aa, bb = a @ b, a @ a, b @ b
    gap = (aa + bb - 2 * inner).clamp_min(torch.finfo(torch.float64).tiny)
    least = ((bb - inner) / gap).clamp(0.001, 0.999)
    return torch.where(inner > 0, torch.full_like(least, 0.5), least).float()
