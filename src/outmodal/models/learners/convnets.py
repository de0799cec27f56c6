"""Convolutional learners over pictures and spectrograms, from transformers' configurations.

ResNet has BatchNorm: in training a row's output depends on the other rows of its batch, so losses
differ with the number of ranks. BiT and ConvNeXt do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import (
    BitConfig,
    BitModel,
    ConvNextConfig,
    ConvNextModel,
    ResNetConfig,
    ResNetModel,
)
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from outmodal.errors import UserError
from outmodal.models.learners.base import PICTURE, Learner, LearnerBase, Patch, side


@dataclass(frozen=True)
class _ResNetSize:
    block: str
    layers: tuple[int, ...]
    widths: tuple[int, ...]


RESNET_SIZES = {
    "micro": _ResNetSize("basic", (1, 1, 1), (32, 64, 128)),
    "18": _ResNetSize("basic", (2, 2, 2, 2), (64, 128, 256, 512)),
    "34": _ResNetSize("basic", (3, 4, 6, 3), (64, 128, 256, 512)),
    "50": _ResNetSize("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048)),
    "152": _ResNetSize("bottleneck", (3, 8, 36, 3), (256, 512, 1024, 2048)),
}


class ResNetLearner(LearnerBase):
    """A residual network (He et al., CVPR 2016). It has BatchNorm.

    The stem divides the sides by 4, and each stage after the first by 2: inputs of 28 to 64 pixels
    want micro or custom with three stages.

    Attributes:
        depth: micro (three stages of one basic block, widths 32, 64, 128), 18, 34, 50 or 152, or
            custom with widths and layers given.
        widths, layers: Channels and blocks of each stage, for depth custom only.
        block: basic or bottleneck, for depth custom only.
        stem: Channels of the stem.
        drop_path: Rate of stochastic depth (Huang et al., ECCV 2016) at the last block, rising
            linearly from 0 at the first; one draw for each sample and block.
    """

    name: Literal["resnet"] = "resnet"
    depth: Literal["micro", "18", "34", "50", "152", "custom"] = "18"
    widths: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    block: Literal["basic", "bottleneck"] | None = None
    stem: int = Field(default=64, gt=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _number(cls, data: object) -> object:
        return with_text_depth(data)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_stages(self.depth == "custom", self.widths, self.layers, f"depth {self.depth}")
        if self.depth != "custom" and self.block is not None:
            raise ValueError(f"block is for depth custom, not {self.depth}")
        return self

    def build(self) -> Learner:
        return ResNetEncoder(self)


def with_text_depth(data: object) -> object:
    """Accept `depth: 18` as YAML reads it."""
    if isinstance(data, dict) and isinstance(data.get("depth"), int):
        return {**data, "depth": str(data["depth"])}
    return data


def check_stages(
    custom: bool, widths: tuple[int, ...] | None, layers: tuple[int, ...] | None, what: str
) -> None:
    """Raise ValueError unless widths and layers are given, of one length, exactly when custom."""
    if not custom and (widths, layers) != (None, None):
        raise ValueError(f"widths and layers are for custom, not {what}")
    if custom and (not widths or not layers or len(widths) != len(layers)):
        raise ValueError("custom wants widths and layers, one each for every stage")


class ResNetEncoder(Learner):
    """ResNetModel and its global average pool."""

    def __init__(self, config: ResNetLearner) -> None:
        channels, _, _ = config.expect((3,), PICTURE)
        size = RESNET_SIZES.get(config.depth) or _ResNetSize(
            config.block or "basic", config.layers or (), config.widths or ()
        )
        architecture = ResNetConfig(
            num_channels=channels,
            embedding_size=config.stem,
            hidden_sizes=list(size.widths),
            depths=list(size.layers),
            layer_type=size.block,
        )
        super().__init__(config, ResNetModel(architecture), size.widths[-1], "pooler")
        drop_branches(self.backbone, config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.backbone(pixel_values=x).pooler_output
        return pooled.flatten(1)


class DropBranch:
    """Forward hook of stochastic depth on a block's residual branch: with probability `rate` a
    sample has none, and otherwise it is larger by so much that the mean stays.

    transformers' ResNet has no stochastic depth; a hook leaves its weights' names alone.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return the branch [B, C, H, W], zeros for some samples."""
        if not module.training:
            return output
        kept = torch.rand(len(output), 1, 1, 1, device=output.device) >= self.rate
        return output * (kept.to(output.dtype) / (1.0 - self.rate))


def drop_branches(backbone: nn.Module, rate: float) -> None:
    """Hook stochastic depth into a ResNetModel's blocks, its rate rising linearly to `rate`."""
    kinds = (ResNetBasicLayer, ResNetBottleNeckLayer)
    blocks = [m for m in backbone.modules() if isinstance(m, kinds)]
    for i, block in enumerate(blocks):
        block_rate = rate * i / max(len(blocks) - 1, 1)
        if block_rate > 0:
            block.layer.register_forward_hook(DropBranch(block_rate))


@dataclass(frozen=True)
class _BitSize:
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int = 64
    groups: int = 32


BIT_SIZES = {
    "micro": _BitSize((1, 1, 1), (64, 128, 256), stem=32, groups=8),
    "50": _BitSize((3, 4, 6, 3), (256, 512, 1024, 2048)),
    "101": _BitSize((3, 4, 23, 3), (256, 512, 1024, 2048)),
    "152": _BitSize((3, 8, 36, 3), (256, 512, 1024, 2048)),
}


class BitLearner(LearnerBase):
    """A residual network with GroupNorm and standardised weights (BiT, Kolesnikov et al., ECCV
    2020): a ResNet whose rows do not see each other. It likes learning rates about twice as high.

    Attributes:
        depth: micro (three bottleneck blocks, widths 64, 128, 256, for inputs of 28 to 64 pixels),
            50, 101 or 152, or custom with widths and layers given.
        widths, layers: Channels and blocks of each stage, for depth custom only.
        stem: Channels of the stem; None takes the depth's (custom: the first width's half).
        groups: Groups of GroupNorm; None takes the depth's (custom: 8).
        drop_path: Rate of stochastic depth at the last block.
    """

    name: Literal["bit"] = "bit"
    depth: Literal["micro", "50", "101", "152", "custom"] = "50"
    widths: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    stem: int | None = Field(default=None, gt=0)
    groups: int | None = Field(default=None, gt=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _number(cls, data: object) -> object:
        return with_text_depth(data)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_stages(self.depth == "custom", self.widths, self.layers, f"depth {self.depth}")
        size = self.sizes()
        for channels in (size.stem, *size.widths, *(w // 4 for w in size.widths)):
            if channels % size.groups or channels % 8:
                raise ValueError(
                    f"stem {size.stem} and a quarter of each width {size.widths} must be "
                    f"multiples of 8 and of groups {size.groups}"
                )
        return self

    def sizes(self) -> _BitSize:
        """Return the preset or custom sizes, with stem and groups filled in."""
        widths = self.widths or ()
        preset = BIT_SIZES.get(self.depth) or _BitSize(
            self.layers or (), widths, stem=max(8, widths[0] // 2) if widths else 8, groups=8
        )
        return _BitSize(
            preset.layers, preset.widths, self.stem or preset.stem, self.groups or preset.groups
        )

    def build(self) -> Learner:
        return BitEncoder(self)


class BitEncoder(Learner):
    """BitModel and its global average pool."""

    def __init__(self, config: BitLearner) -> None:
        channels, _, _ = config.expect((3,), PICTURE)
        size = config.sizes()
        architecture = BitConfig(
            num_channels=channels,
            embedding_size=size.stem,
            hidden_sizes=list(size.widths),
            depths=list(size.layers),
            num_groups=size.groups,
            drop_path_rate=config.drop_path,
        )
        super().__init__(config, BitModel(architecture), size.widths[-1], "pooler")

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.backbone(pixel_values=x).pooler_output
        return pooled.flatten(1)


@dataclass(frozen=True)
class _ConvNextSize:
    layers: tuple[int, ...]
    widths: tuple[int, ...]


CONVNEXT_SIZES = {
    "micro": _ConvNextSize((1, 2, 1), (32, 64, 128)),
    "atto": _ConvNextSize((2, 2, 6, 2), (40, 80, 160, 320)),
    "tiny": _ConvNextSize((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": _ConvNextSize((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": _ConvNextSize((3, 3, 27, 3), (128, 256, 512, 1024)),
}


class ConvNextLearner(LearnerBase):
    """A ConvNeXt (Liu et al., CVPR 2022). No BatchNorm: a row's output depends on that row alone.

    Attributes:
        size: micro (three stages, for inputs of about 28 to 64 pixels), atto, tiny, small, base,
            or custom with widths and layers given.
        patch: Side of the stem's patch, or height and width. Each later stage halves both again.
        widths, layers: Channels and blocks of each stage, for size custom only.
        layer_scale: Initial scale of each block's branch; 1e-6 is the paper's, meant for long
            training. 0 leaves the scales out.
        drop_path: Rate of stochastic depth at the last block.
    """

    name: Literal["convnext"] = "convnext"
    size: Literal["micro", "atto", "tiny", "small", "base", "custom"] = "tiny"
    patch: Patch = 4
    widths: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    layer_scale: float = Field(default=1e-6, ge=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_stages(self.size == "custom", self.widths, self.layers, f"size {self.size}")
        return self

    def build(self) -> Learner:
        return ConvNextEncoder(self)


class ConvNextEncoder(Learner):
    """ConvNextModel, its global average pool and final LayerNorm."""

    def __init__(self, config: ConvNextLearner) -> None:
        channels, height, width = config.expect((3,), PICTURE)
        size = CONVNEXT_SIZES.get(config.size) or _ConvNextSize(
            config.layers or (), config.widths or ()
        )
        patch = (config.patch,) * 2 if isinstance(config.patch, int) else config.patch
        halvings = 2 ** (len(size.widths) - 1)
        if height < patch[0] * halvings or width < patch[1] * halvings:
            raise UserError(
                f"learner 'convnext' for '{config.modality}': a patch of {patch} and "
                f"{len(size.widths)} stages want inputs of at least "
                f"{(patch[0] * halvings, patch[1] * halvings)}, but the input is "
                f"{(height, width)}: choose a smaller patch or fewer stages"
            )
        architecture = ConvNextConfig(
            num_channels=channels,
            patch_size=side(*patch),
            num_stages=len(size.widths),
            hidden_sizes=list(size.widths),
            depths=list(size.layers),
            layer_scale_init_value=config.layer_scale,
            drop_path_rate=config.drop_path,
            image_size=side(height, width),
        )
        super().__init__(config, ConvNextModel(architecture), size.widths[-1], "pooler")

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.backbone(pixel_values=x).pooler_output
        return pooled
