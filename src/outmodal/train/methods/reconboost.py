"""ReconBoost: modalities take turns as in boosting (Hua et al., "ReconBoost: Boosting Can Achieve
Modality Reconcilement", ICML 2024).

    start       every modality by itself
    turn of m   only m learns, and more from samples that the others' summed logits get wrong
    together    all learn from the summed logits

and turns and joint stretches alternate until the run ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.data.batch import Batch
from outmodal.models.heads import linear_classifier
from outmodal.train import gather
from outmodal.train.methods.base import Context, Stage, StepOutput
from outmodal.train.methods.fusion import FUSED, Fusion, FusionConfig
from outmodal.train.methods.supervised import apply_linear
from outmodal.train.methods.terms import weighted

START, TURN, TOGETHER = "start", "turn:", "together"


class ReconBoostConfig(FusionConfig):
    """Alternating boosting of modalities.

    Attributes:
        start_epochs: Epochs in which each modality first learns by itself.
        turn_epochs: Epochs of each modality's turn.
        together_epochs: Epochs of joint learning after each turn.
        w1, w2: A sample counts (w1 - w2 * p_others(y)) / C in a turn.
        shared_head: Whether one linear classifier serves all modalities; representations of
            another size than the largest are projected to that.
    """

    name: Literal["reconboost"] = "reconboost"
    start_epochs: int = Field(default=4, ge=0)
    turn_epochs: int = Field(default=4, ge=1)
    together_epochs: int = Field(default=4, ge=0)
    w1: float = Field(default=5.0, gt=0)
    w2: float = Field(default=1.0, ge=0)
    shared_head: bool = True

    def build(self, context: Context) -> ReconBoost:
        """Make the method for a run."""
        return ReconBoost(context, self)


class ReconBoost(Fusion):
    """logits = sum_m h(r^m), with one h for all modalities."""

    def __init__(self, context: Context, config: ReconBoostConfig) -> None:
        super().__init__(context, config)
        self.keys = config
        classes, widest = len(context.classes), max(self.dims.values())
        if config.shared_head:
            self.adapters = nn.ModuleList(
                nn.Identity() if d == widest else nn.Linear(d, widest) for d in self.dims.values()
            )
            self.heads = nn.ModuleList([linear_classifier(widest, classes)])
        else:
            self.adapters = nn.ModuleList(nn.Identity() for _ in self.modalities)
            self.heads = nn.ModuleList(linear_classifier(d, classes) for d in self.dims.values())

    def stages(self) -> Sequence[Stage]:
        """See the module; the last stretch is cut off where the run ends."""
        keys, left = self.keys, self.context.epochs
        out: list[Stage] = []
        for name, epochs in self._stretches():
            taken = min(epochs, left)
            left -= taken
            out += [Stage(name, taken)] if taken else []
            if not left:
                break
        assert sum(stage.epochs for stage in out) == self.context.epochs, keys
        return out

    def _stretches(self) -> Iterator[tuple[str, int]]:
        yield START, self.keys.start_epochs
        while True:
            for m in self.modalities:
                yield f"{TURN}{m}", self.keys.turn_epochs
                yield TOGETHER, self.keys.together_epochs

    def alone(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self._logits(m, t) for m, t in r.items()}

    def _logits(self, modality: str, r: Tensor) -> Tensor:
        place = self.place(modality)
        adapter, head = self.adapters[place], self.heads[0 if self.keys.shared_head else place]
        wide = r if isinstance(adapter, nn.Identity) else apply_linear(adapter, r)
        return apply_linear(head, wide)

    def fused(self, r: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(self.alone({m: r[m] for m in self.modalities}).values())).sum(dim=0)

    def classifier(self, modality: str) -> nn.Linear | None:
        place = self.place(modality)
        if not isinstance(self.adapters[place], nn.Identity):
            return None
        head = self.heads[0 if self.keys.shared_head else place]
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        if stage.startswith(TURN):
            return self._turn(stage.removeprefix(TURN), batch)
        r = self.representations(batch)
        if stage == TOGETHER:
            return weighted({"task": self.mean_loss(self.fused(r), batch)})
        terms = {
            f"task_{m}": self.mean_loss(logits, batch, batch.present[m])
            for m, logits in self.alone(r).items()
        }
        return weighted(terms)

    def _turn(self, modality: str, batch: Batch) -> StepOutput:
        logits = self._logits(modality, self.encode(modality, self.shown(modality, batch)))
        weight = self._wanting(modality, batch)
        rows = self.answered(batch) & batch.present[modality]
        return weighted({"turn": gather.masked_mean(weight * self.loss_rows(logits, batch), rows)})

    @torch.no_grad()
    def _wanting(self, modality: str, batch: Batch) -> Tensor:
        """[B] (w1 - w2 * p_others(y)) / C: how much is left to be learned of each sample."""
        others = [m for m in self.modalities if m != modality]
        with _still([self.learners[self.place(m)] for m in others]):
            r = {m: self.encode(m, self.shown(m, batch)) for m in others}
        summed = torch.stack(list(self.alone(r).values())).sum(dim=0)
        right = summed.softmax(dim=1).gather(1, batch.label.clamp_min(0)[:, None])[:, 0]
        return sample_weight(right, self.keys.w1, self.keys.w2, summed.shape[1])


def sample_weight(right: Tensor, w1: float, w2: float, classes: int) -> Tensor:
    """(w1 - w2 * p) / C of the others' probabilities p [B] of the true class."""
    return (w1 - w2 * right) / classes


@contextlib.contextmanager
def _still(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules in eval mode: those that do not learn keep their running statistics."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)
