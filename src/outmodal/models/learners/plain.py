"""Small learners of our own for sensors: convolutions over time, a perceptron, an LSTM."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from outmodal.models.learners.base import Learner, LearnerBase

Widths = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
SEQUENCE = "a series [steps, channels] or a spectrogram [channels, bands, frames]"


class Cnn1dLearner(LearnerBase):
    """Convolutions over time with GroupNorm and GELU, averaged over time.

    Reads series [T, C], waveforms [T], and spectrograms [C, F, T] as C x F channels.

    Attributes:
        widths: Channels of each convolution; the last is the representation's size.
        kernel: Steps that a convolution sees; odd.
        stride: Stride of each convolution but the first.
        first_stride: Stride of the first convolution: for waveforms some 5 to 16.
        groups: Groups of GroupNorm, at most; each layer takes the largest common divisor with its
            channels.
    """

    name: Literal["cnn1d"] = "cnn1d"
    widths: Widths = (64, 128, 256)
    kernel: int = Field(default=5, gt=0)
    stride: int = Field(default=2, gt=0)
    first_stride: int = Field(default=1, gt=0)
    groups: int = Field(default=8, gt=0)

    def build(self) -> Learner:
        return Cnn1dEncoder(self)


class Cnn1dEncoder(Learner):
    """Convolutions over the last axis after `to_channels`."""

    def __init__(self, config: Cnn1dLearner) -> None:
        shape = config.expect((1, 2, 3), f"{SEQUENCE}, or a waveform [samples]")
        channels = {1: 1, 2: shape[-1], 3: math.prod(shape[:2])}[len(shape)]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise((channels, *config.widths))):
            layers += [
                nn.Conv1d(
                    before,
                    after,
                    config.kernel,
                    stride=config.stride if i else config.first_stride,
                    padding=config.kernel // 2,
                    bias=False,
                ),
                nn.GroupNorm(math.gcd(config.groups, after), after),
                nn.GELU(),
            ]
        layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten(1)]
        super().__init__(config, nn.Sequential(*layers), config.widths[-1], "none")

    def forward(self, x: Tensor) -> Tensor:
        r: Tensor = self.backbone(to_channels(x))
        return r


def to_channels(x: Tensor) -> Tensor:
    """Return [B, channels, T] of a waveform [B, T], a series [B, T, C] or pictures [B, C, F, T]."""
    if x.ndim == 2:
        return x[:, None]
    return x.transpose(1, 2) if x.ndim == 3 else x.flatten(1, 2)


class MlpLearner(LearnerBase):
    """Linear layers with LayerNorm and GELU over the flattened input.

    Attributes:
        widths: Width of each layer; the last is the representation's size.
    """

    name: Literal["mlp"] = "mlp"
    widths: Widths = (256, 256)

    def build(self) -> Learner:
        return MlpEncoder(self)


class MlpEncoder(Learner):
    """Linear, LayerNorm and GELU for each width."""

    def __init__(self, config: MlpLearner) -> None:
        shape = config.expect((1, 2, 3, 4), "any array")
        layers: list[nn.Module] = []
        for before, after in pairwise((math.prod(shape), *config.widths)):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
        super().__init__(config, nn.Sequential(*layers), config.widths[-1], "none")

    def forward(self, x: Tensor) -> Tensor:
        r: Tensor = self.backbone(x.flatten(1))
        return r


class LstmLearner(LearnerBase):
    """An LSTM over time.

    Reads series [T, C], and spectrograms [C, F, T] as C x F channels.

    Attributes:
        width: Units in each direction.
        depth: Layers.
        bidirectional: Read backwards as well; the representation is twice as large.
        pool: Mean over time, or the last step (of a series read forwards only).
    """

    name: Literal["lstm"] = "lstm"
    width: int = Field(default=128, gt=0)
    depth: int = Field(default=1, gt=0)
    bidirectional: bool = True
    pool: Literal["mean", "last"] = "mean"

    def build(self) -> Learner:
        return LstmEncoder(self)


class LstmEncoder(Learner):
    """nn.LSTM over [B, T, channels], pooled by `pool`."""

    def __init__(self, config: LstmLearner) -> None:
        shape = config.expect((2, 3), SEQUENCE)
        backbone = nn.LSTM(
            shape[-1] if len(shape) == 2 else math.prod(shape[:2]),
            config.width,
            config.depth,
            batch_first=True,
            bidirectional=config.bidirectional,
        )
        directions = 2 if config.bidirectional else 1
        super().__init__(config, backbone, directions * config.width, config.pool)

    def forward(self, x: Tensor) -> Tensor:
        steps = x if x.ndim == 3 else x.flatten(1, 2).transpose(1, 2)
        hidden: Tensor = self.backbone(steps)[0]
        return hidden.mean(dim=1) if self.pool == "mean" else hidden[:, -1]
