"""ImageBind's towers: one class, and the sizes that make it the tower of a modality.

Girdhar et al., "ImageBind: One Embedding Space To Bind Them All" (CVPR 2023). Written from a
description of the released model; its keys and shapes are those of `imagebind_huge.pth`.
"""

from __future__ import annotations

from collections import OrderedDict
from math import isqrt, prod, sqrt

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.base import Config
from outmodal.models.perceptors.towers import Mlp, attend, end_token, rows_at, unit

EPS = 1e-6
"""Of the norms in blocks and heads; those of the stems have torch's 1e-5."""
_MAX_SCALE = 100.0


class ImageBindSizes(Config):
    """What distinguishes one tower from another.

    Attributes:
        input: Shape of one input: (channels, [frames,] height, width), (channels, time), or
            (tokens,).
        width, blocks, heads: Of the transformer; the MLP is four times as wide.
        stem: Name of the patch projection in the checkpoint, "" for token ids.
        kernel: Extent of a patch along every axis but the channels.
        stride: Step between patches along each of those axes; () is the kernel.
        vocabulary: Number of token ids, 0 where the input is no text.
        stem_norm: Whether patches are normalised.
        pre_norm: Whether the transformer's input is normalised.
        extra_token: Whether attention has one more key and value that belong to no position.
        head_gap: Parameter-free layers that the checkpoint counts between a head's norm and its
            projection.
        scaled: Whether upstream multiplies the unit vector by a stored scale.
    """

    input: tuple[int, ...]
    width: int
    blocks: int
    heads: int
    stem: str = "rgbt_stem"
    kernel: tuple[int, ...] = (16, 16)
    stride: tuple[int, ...] = ()
    vocabulary: int = 0
    stem_norm: bool = True
    pre_norm: bool = False
    extra_token: bool = True
    head_gap: int = 1
    scaled: bool = True

    @property
    def steps(self) -> tuple[int, ...]:
        """Step between patches along each axis."""
        return self.stride or self.kernel

    @property
    def patches(self) -> int:
        """Number of patches of one input, or of its tokens."""
        if self.vocabulary:
            return self.input[0]
        axes = zip(self.input[1:], self.kernel, self.steps, strict=True)
        return prod((n - k) // s + 1 for n, k, s in axes)


class ImageBindSettings(Config):
    """Sizes of a whole ImageBind: what its checkpoint must hold.

    Attributes:
        dim: Size of the shared embedding.
        towers: Sizes by the checkpoint's name of the modality.
    """

    dim: int = 1024
    towers: dict[str, ImageBindSizes] = Field(
        default_factory=lambda: {
            "vision": ImageBindSizes(
                input=(3, 2, 224, 224),
                width=1280,
                blocks=32,
                heads=16,
                kernel=(2, 14, 14),
                stem_norm=False,
                pre_norm=True,
                extra_token=False,
                scaled=False,
            ),
            "text": ImageBindSizes(
                input=(77,),
                width=1024,
                blocks=24,
                heads=16,
                stem="",
                vocabulary=49408,
                extra_token=False,
                head_gap=0,
            ),
            "audio": ImageBindSizes(
                input=(1, 128, 204), width=768, blocks=12, heads=12, stride=(10, 10)
            ),
            "depth": ImageBindSizes(
                input=(1, 224, 224), width=384, blocks=12, heads=8, stem="depth_stem"
            ),
            "thermal": ImageBindSizes(input=(1, 224, 224), width=768, blocks=12, heads=12),
            "imu": ImageBindSizes(
                input=(6, 2000),
                width=512,
                blocks=6,
                heads=8,
                stem="imu_stem",
                kernel=(8,),
                head_gap=2,
            ),
        }
    )


def checkpoint_key(tower: str, name: str) -> str:
    """Key in the checkpoint of parameter `name` of a tower.

    >>> checkpoint_key("audio", "trunk.blocks.0.norm_1.weight")
    'modality_trunks.audio.blocks.0.norm_1.weight'
    """
    part, _, rest = name.partition(".")
    return f"modality_{part}s.{tower}.{rest}"


class ImageBindTower(nn.Module):
    """Encoder of one modality.

    `preprocessor` makes tokens, `trunk` is the transformer, `head` projects one position.
    """

    def __init__(self, sizes: ImageBindSizes, dim: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.preprocessor = TextTokens(sizes) if sizes.vocabulary else PatchTokens(sizes)
        self.trunk = Trunk(sizes)
        self.head = _head(sizes, dim)
        if sizes.scaled:
            self.postprocessor = nn.Sequential(nn.Identity(), LogScale())

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim] for a batch of inputs, or of several clips each: x [B, clips, *input].

        Without clips the rows have unit length; with them they are means of unit vectors.
        """
        clips = x.shape[1] if x.ndim > 4 else 0
        e = unit(self.project(x.flatten(0, 1) if clips else x))
        return e.reshape(len(x), clips, -1).mean(1) if clips else e

    def project(self, x: Tensor) -> Tensor:
        """[B, dim] before normalisation; no clips axis."""
        tokens = self.trunk(self.preprocessor(x), self.mask())
        first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        index = end_token(x) if self.sizes.vocabulary else first
        out: Tensor = self.head(rows_at(tokens, index))
        return out

    def mask(self) -> Tensor | None:
        """Attention mask [L, L], of text only."""
        return self.preprocessor.mask if isinstance(self.preprocessor, TextTokens) else None

    def scale(self) -> float:
        """Return what upstream multiplies the unit vectors by; ours stay unscaled."""
        return float(self.postprocessor[1]()) if self.sizes.scaled else 1.0


class PatchTokens(nn.Module):
    """Patches of an input, a class token before them, positions added: [B, L, width]."""

    def __init__(self, sizes: ImageBindSizes) -> None:
        super().__init__()
        self.stem = sizes.stem
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        table = nn.Parameter(torch.zeros(1, 1 + sizes.patches, sizes.width))
        if len(sizes.kernel) == 1:
            self.pos_embed = table
            self.add_module(sizes.stem, Stem(Windows(sizes), sizes))
        else:
            self.pos_embedding_helper = Positions(table)
            self.add_module(sizes.stem, Stem(_convolution(sizes), sizes))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.get_submodule(self.stem)(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        if hasattr(self, "pos_embed"):
            return tokens + self.pos_embed
        out: Tensor = tokens + self.pos_embedding_helper(patches.shape[1])
        return out


class Stem(nn.Module):
    """`proj` of every patch [B, L, width], then `norm_layer` if there is one."""

    def __init__(self, proj: nn.Module, sizes: ImageBindSizes) -> None:
        super().__init__()
        self.proj = proj
        self.norm_layer = nn.LayerNorm(sizes.width) if sizes.stem_norm else None

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x)
        if patches.ndim > 3:
            patches = patches.flatten(2).transpose(1, 2)
        return patches if self.norm_layer is None else self.norm_layer(patches)


def _convolution(sizes: ImageBindSizes) -> nn.Module:
    """Patch projection of pictures [B, C, H, W] or clips [B, C, T, H, W]."""
    channels, width, k, s = sizes.input[0], sizes.width, sizes.kernel, sizes.steps
    if len(k) == 2:
        return nn.Conv2d(channels, width, (k[0], k[1]), (s[0], s[1]), bias=False)
    conv = nn.Conv3d(channels, width, (k[0], k[1], k[2]), (s[0], s[1], s[2]), bias=False)
    return nn.Sequential(Frames(k[0]), conv)


class Frames(nn.Module):
    """Gives pictures a time axis, and repeats a single frame to as many as a patch covers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2) if x.ndim == 4 else x
        return x.expand(-1, -1, self.count, -1, -1) if x.shape[2] == 1 else x


class Windows(nn.Linear):
    """Linear map of the windows of a series: [B, channels, time] to [B, windows, width]."""

    def __init__(self, sizes: ImageBindSizes) -> None:
        super().__init__(sizes.input[0] * sizes.kernel[0], sizes.width, bias=False)
        self.size, self.step = sizes.kernel[0], sizes.steps[0]

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(-1, self.size, self.step).transpose(1, 2).flatten(2)
        return super().forward(windows)


class Positions(nn.Module):
    """Position table, stretched for square pictures of another size than it was made for."""

    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.pos_embed = table

    def forward(self, patches: int) -> Tensor:
        """[1, 1 + patches, width]."""
        held = self.pos_embed.shape[1] - 1
        if patches == held:
            return self.pos_embed
        side = isqrt(held)
        if side * side != held or isqrt(patches) ** 2 != patches:
            raise ValueError(f"{patches} patches: positions are made for {held}, no square grid")
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:].mT.reshape(1, -1, side, side)
        stretched = F.interpolate(grid, scale_factor=sqrt(patches / held), mode="bicubic")
        return torch.cat([first, stretched.flatten(2).mT], dim=1)


class TextTokens(nn.Module):
    """Embedded token ids [B, L], positions added: [B, L, width]."""

    mask: Tensor

    def __init__(self, sizes: ImageBindSizes) -> None:
        super().__init__()
        length = sizes.input[0]
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, sizes.width))
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.token_embedding(ids) + self.pos_embed
        return out


class Trunk(nn.Module):
    """The transformer: [B, L, width] to the same shape; no norm at its end."""

    def __init__(self, sizes: ImageBindSizes) -> None:
        super().__init__()
        if sizes.pre_norm:
            self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(sizes.width, EPS))
        self.pre_norm = sizes.pre_norm
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.pre_transformer_layer(x) if self.pre_norm else x
        for block in self.blocks:
            x = block(x, mask)
        return x


class Block(nn.Module):
    """x += attention(norm_1(x)); x += mlp(norm_2(x))."""

    def __init__(self, sizes: ImageBindSizes) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(sizes.width, EPS)
        self.attn = Attention(sizes.width, sizes.heads, sizes.extra_token)
        self.norm_2 = nn.LayerNorm(sizes.width, EPS)
        self.mlp = Mlp(sizes.width, 4 * sizes.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm_1(x), mask)
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values.

    `bias_k` and `bias_v` are one more key and value, the same for all samples.
    """

    def __init__(self, width: int, heads: int, extra_token: bool) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.extra_token = extra_token
        if extra_token:
            self.bias_k = nn.Parameter(torch.zeros(1, 1, width))
            self.bias_v = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.extra_token:
            k = torch.cat([k, self.bias_k.expand(len(x), -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(len(x), -1, -1)], dim=1)
        out: Tensor = self.out_proj(attend(q, k, v, self.heads, mask=mask))
        return out


def _head(sizes: ImageBindSizes, dim: int) -> nn.Module:
    """Norm and projection of one position, at the places that the checkpoint numbers them."""
    gap = [nn.Identity() for _ in range(sizes.head_gap)]
    projection = nn.Linear(sizes.width, dim, bias=False)
    head = nn.Sequential(nn.LayerNorm(sizes.width, EPS), *gap, projection)
    return nn.Sequential(OrderedDict(proj=head)) if sizes.vocabulary else head


class LogScale(nn.Module):
    """Holds the logarithm of upstream's scale of this modality; returns the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.log_logit_scale.detach().float().exp().clamp(max=_MAX_SCALE)
