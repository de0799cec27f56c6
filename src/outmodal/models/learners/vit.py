"""Vision transformers over pictures and spectrograms, from transformers' configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from outmodal.errors import UserError
from outmodal.models.learners.base import PICTURE, Learner, LearnerBase, Patch, side


@dataclass(frozen=True)
class _ViTSize:
    width: int
    depth: int
    heads: int


VIT_SIZES = {
    "micro": _ViTSize(96, 4, 4),
    "tiny": _ViTSize(192, 12, 3),
    "small": _ViTSize(384, 12, 6),
    "base": _ViTSize(768, 12, 12),
    "large": _ViTSize(1024, 24, 16),
}


class ViTLearner(LearnerBase):
    """A vision transformer (Dosovitskiy et al., ICLR 2021) for any channel count and input size.

    Attributes:
        size: micro 96x4x4, tiny 192x12x3, small 384x12x6, base 768x12x12, large 1024x24x16 (width,
            depth, heads), or custom with the three given.
        patch: Side of a patch, or height and width. What remains at the right and lower edge of an
            input that is no multiple of it is not seen.
        width, depth, heads: For size custom only.
        mlp_ratio: Width of the feed-forward layers over the model's width.
        pool: First token, or the mean over all tokens.
        drop_path: Rate of stochastic depth at the last layer, rising linearly from 0 at the first;
            one draw for each sample and layer.
        attention: Attention implementation of transformers.
    """

    name: Literal["vit"] = "vit"
    size: Literal["micro", "tiny", "small", "base", "large", "custom"] = "tiny"
    patch: Patch = 16
    width: int | None = Field(default=None, gt=0)
    depth: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    pool: Literal["cls", "mean"] = "cls"
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = (self.width, self.depth, self.heads)
        if self.size == "custom" and None in given:
            raise ValueError("size custom wants width, depth and heads")
        if self.size != "custom" and given != (None, None, None):
            raise ValueError(f"width, depth and heads are for size custom, not {self.size}")
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self

    def build(self) -> Learner:
        return ViTEncoder(self)


class ViTEncoder(Learner):
    """ViTModel without pooling layer, pooled by `pool`."""

    def __init__(self, config: ViTLearner) -> None:
        channels, height, width = config.expect((3,), PICTURE)
        patch = (config.patch,) * 2 if isinstance(config.patch, int) else config.patch
        if patch[0] > height or patch[1] > width:
            raise UserError(
                f"learner 'vit' for '{config.modality}': patch {patch} is larger than the input "
                f"{(height, width)}: choose a smaller patch"
            )
        size = VIT_SIZES.get(config.size) or _ViTSize(
            config.width or 0, config.depth or 0, config.heads or 0
        )
        architecture = ViTConfig(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=round(size.width * config.mlp_ratio),
            image_size=side(height, width),
            patch_size=side(*patch),
            num_channels=channels,
            attn_implementation=config.attention,
        )
        # without the pooler, whose weights no loss would reach
        backbone = ViTModel(architecture, add_pooling_layer=False)
        super().__init__(config, backbone, size.width, config.pool)
        drop_layers(backbone, config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.backbone(pixel_values=x).last_hidden_state
        return hidden[:, 0] if self.pool == "cls" else hidden.mean(dim=1)


class DropLayer:
    """Forward hook of stochastic depth: with probability `rate` a sample skips the layer.

    transformers' ViT has no stochastic depth; a hook leaves its weights' names alone.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return the layer's input for skipped samples, a scaled-up change for the others."""
        if not module.training:
            return output
        # a layer returns its hidden states, in older transformers as the only member of a tuple
        hidden = output if isinstance(output, Tensor) else output[0]
        kept = torch.rand(len(hidden), 1, 1, device=hidden.device) >= self.rate
        scale = kept.to(hidden.dtype) / (1.0 - self.rate)
        dropped = args[0] + scale * (hidden - args[0])
        return dropped if isinstance(output, Tensor) else (dropped,)


def drop_layers(backbone: nn.Module, rate: float) -> None:
    """Hook stochastic depth into a ViTModel's layers, its rate rising linearly to `rate`."""
    layers = [m for m in backbone.modules() if type(m).__name__ == "ViTLayer"]
    for i, layer in enumerate(layers):
        layer_rate = rate * i / max(len(layers) - 1, 1)
        if layer_rate > 0:
            layer.register_forward_hook(DropLayer(layer_rate))
