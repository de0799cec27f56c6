"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement (Peng et al., "Balanced
Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022).

The encoder of a modality that the classifier already answers by learns more slowly, and noise as
large as the gradient's own spread is added to all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from outmodal.data.batch import Batch
from outmodal.train import gather
from outmodal.train.methods.base import Context, Stage, StepOutput
from outmodal.train.methods.concat import Concat, ScoreBoard, windowed
from outmodal.train.methods.fusion import FUSED, FusionConfig
from outmodal.train.methods.terms import logged

MODULATED = "modulated"


class OgmGeConfig(FusionConfig):
    """Gradient modulation.

    Attributes:
        alpha: How strongly: a modality whose score is rho > 1 times the others' learns with
            1 - tanh(alpha * rho) of its gradient.
        noise: Whether Gaussian noise with the standard deviation of each gradient is added to it.
        begin, end: Epochs in which gradients are changed: from `begin`, before `end`.
        scope: What of an encoder: its convolutions (conv, as in the authors' code), all its
            parameters (all), or auto: the convolutions of an encoder that has any, and the
            weights of two and more axes of another.
    """

    name: Literal["ogm_ge"] = "ogm_ge"
    alpha: float = Field(default=0.8, ge=0)
    noise: bool = True
    begin: int = Field(default=0, ge=0)
    end: int = Field(default=50, ge=0)
    scope: Literal["auto", "conv", "all"] = "auto"

    def build(self, context: Context) -> OgmGe:
        """Make the method for a run."""
        return OgmGe(context, self)


class OgmGe(Concat):
    """Joint training with changed gradients."""

    def __init__(self, context: Context, config: OgmGeConfig) -> None:
        super().__init__(context, config)
        self.keys = config
        self.board = ScoreBoard()

    def stages(self) -> Sequence[Stage]:
        return windowed(MODULATED, self.context.epochs, self.keys.begin, self.keys.end)

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        r = self.representations(batch)
        loss = self.mean_loss(self.fused(r), batch)
        if stage != MODULATED:
            return logged(loss, {"loss/task": loss})
        rows = self.answered(batch) & self.presence(batch).all(dim=1)
        ratios = self.board.add(self.shares(r), batch.label, rows)
        shown = {f"ratio/{m}": ratio for m, ratio in zip(self.modalities, ratios, strict=True)}
        return logged(loss, {"loss/task": loss, **shown})

    def edit_gradients(self, gradients: dict[str, Tensor], stage: str, step: int) -> None:
        """Scale and blur the gradients of each encoder."""
        if stage != MODULATED:
            return
        factors = coefficients(self.board.ratios(len(self.modalities)), self.keys.alpha).tolist()
        self.board.clear()
        for m, factor in zip(self.modalities, factors, strict=True):
            for name in self.modulated_names(m):
                if name in gradients:
                    held = gradients[name]
                    noise = self._noise(held, name, step)
                    gradients[name] = held * factor + noise

    def _noise(self, gradient: Tensor, name: str, step: int) -> Tensor:
        if not self.keys.noise:
            return torch.zeros_like(gradient)
        spread = gradient.float().std(unbiased=gradient.numel() > 1)
        return gather.seeded_noise(gradient, self.context.seed, "ogm_ge", step, name) * (
            spread + 1e-8
        )

    def modulated_names(self, modality: str) -> list[str]:
        """Names of the parameters of an encoder that `scope` means."""
        place, names = self.place(modality), self.encoder_names(modality)
        if self.keys.scope == "all":
            return names
        learner: nn.Module = self.learners[place]
        kernels = {
            f"learners.{place}.{name}.weight"
            for name, module in learner.named_modules()
            if isinstance(module, _ConvNd)
        }
        found = [name for name in names if name in kernels]
        if found or self.keys.scope == "conv":
            return found
        axes = {f"learners.{place}.{name}": p.ndim for name, p in learner.named_parameters()}
        return [name for name in names if axes[name] > 1]


def coefficients(ratios: Tensor, alpha: float) -> Tensor:
    """Factors on the gradients of the modalities: ratios [M] -> [M] (equation 10)."""
    return torch.where(ratios > 1, 1 - torch.tanh(alpha * ratios), torch.ones_like(ratios))
