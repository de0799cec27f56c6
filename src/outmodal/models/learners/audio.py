"""A learner over waveforms, from transformers' configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from outmodal.errors import UserError
from outmodal.models.learners.base import Learner, LearnerBase

STRIDES = (5, 2, 2, 2, 2, 2, 2)
KERNELS = (10, 3, 3, 3, 3, 2, 2)


@dataclass(frozen=True)
class _Size:
    width: int
    depth: int
    heads: int
    filters: int
    stable: bool = False


SIZES = {
    "tiny": _Size(192, 4, 3, 128),
    "base": _Size(768, 12, 12, 512),
    "large": _Size(1024, 24, 16, 512, stable=True),
}


class Wav2Vec2Learner(LearnerBase):
    """A wav2vec 2.0 encoder (Baevski et al., NeurIPS 2020), averaged over time.

    Dropout and layer dropout are off, so that a step is a function of its batch.

    Attributes:
        size: tiny 192x4x3, base 768x12x12, large 1024x24x16 (width, depth, heads; large with layer
            norm before attention), or custom with the three given.
        width, depth, heads: For size custom only.
        filters: Channels of the convolutions; None takes the size's.
        mask_time: Share of time steps masked in training (SpecAugment); they are drawn from
            numpy's global generator.
        attention: Attention implementation of transformers.
    """

    name: Literal["wav2vec2"] = "wav2vec2"
    size: Literal["tiny", "base", "large", "custom"] = "base"
    width: int | None = Field(default=None, gt=0)
    depth: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    filters: int | None = Field(default=None, gt=0)
    mask_time: float = Field(default=0.0, ge=0, lt=1)
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = (self.width, self.depth, self.heads)
        if self.size == "custom" and None in given:
            raise ValueError("size custom wants width, depth and heads")
        if self.size != "custom" and given != (None, None, None):
            raise ValueError(f"width, depth and heads are for size custom, not {self.size}")
        if self.width and (self.width % (self.heads or 1) or self.width % 16):
            raise ValueError(f"width {self.width} is no multiple of 16 and of heads {self.heads}")
        return self

    def build(self) -> Learner:
        return Wav2Vec2Encoder(self)


class Wav2Vec2Encoder(Learner):
    """Wav2Vec2Model, the mean of last_hidden_state over time."""

    def __init__(self, config: Wav2Vec2Learner) -> None:
        (samples,) = config.expect((1,), "a waveform [samples]")
        if config.input.name != "waveform" or samples < 400:
            raise UserError(
                f"learner 'wav2vec2' for '{config.modality}' reads a waveform of at least 400 "
                f"samples, but input '{config.input.name}' gives {samples} values: choose input "
                "'waveform' with longer clips"
            )
        size = SIZES.get(config.size) or _Size(
            config.width or 0, config.depth or 0, config.heads or 0, 512
        )
        filters = config.filters or size.filters
        architecture = Wav2Vec2Config(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            conv_dim=(filters,) * len(STRIDES),
            conv_stride=STRIDES,
            conv_kernel=KERNELS,
            conv_bias=size.stable,
            feat_extract_norm="layer" if size.stable else "group",
            do_stable_layer_norm=size.stable,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
            final_dropout=0.0,
            layerdrop=0.0,
            mask_time_prob=config.mask_time,
            attn_implementation=config.attention,
        )
        super().__init__(config, Wav2Vec2Model(architecture), size.width, "mean")

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.backbone(input_values=x).last_hidden_state
        return hidden.mean(dim=1)
