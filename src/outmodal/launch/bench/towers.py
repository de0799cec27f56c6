"""Pairs of towers on the same random weights: ours, and the same architecture of stock parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from outmodal.models.perceptors.imagebind_towers import (
    EPS,
    ImageBindSettings,
    ImageBindSizes,
    ImageBindTower,
)
from outmodal.models.perceptors.languagebind_settings import (
    LanguageBindSettings,
    TextSettings,
    VisionSettings,
)
from outmodal.models.perceptors.languagebind_towers import LanguageBindTower
from outmodal.models.perceptors.towers import unit

Size = Literal["tiny", "small", "full"]
TOWERS = ("imagebind/vision", "imagebind/audio", "languagebind/image", "languagebind/text")
DIM = ImageBindSettings().dim
_CLIP_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "projection_dim",
)
_SMALLER: dict[Size, tuple[int, int, int]] = {"tiny": (32, 1, 2), "small": (384, 4, 6)}
"""Width, blocks and heads of all towers where they are not the released ones."""


@dataclass(frozen=True)
class Pair:
    """Ours and the stock tower; both map inputs to [B, d] unit vectors.

    Attributes:
        name: Family and tower.
        stock: What the other is made of.
        parameters: Weights of ours; the other's are the same tensors.
        inputs: Makes a batch of B random inputs.
    """

    name: str
    stock: str
    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor], Tensor]
    parameters: int
    inputs: Callable[[int], Tensor]


def make_pair(name: str, size: Size, dtype: torch.dtype, device: torch.device) -> Pair:
    """Make both towers of one of TOWERS, on `device`."""
    family, _, tower = name.partition("/")
    make = _imagebind_pair if family == "imagebind" else _languagebind_pair
    return make(tower, size, dtype, device)


def random_imagebind(
    tower: str, size: Size, dtype: torch.dtype, device: torch.device
) -> ImageBindTower:
    """An ImageBind tower of random weights."""
    settings = ImageBindSettings()
    sizes = settings.towers[tower]
    if size != "full":
        width, blocks, heads = _SMALLER[size]
        sizes = sizes.model_copy(update={"width": width, "blocks": blocks, "heads": heads})
    with torch.device("meta"):
        module = ImageBindTower(sizes, settings.dim)
    _fill(module, dtype, device)
    return module


def _fill(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give a module without memory random weights whose outputs neither vanish nor overflow."""
    module.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for weight in module.parameters():
        weight.normal_(0, 0.02, generator=generator)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()


def _imagebind_pair(tower: str, size: Size, dtype: torch.dtype, device: torch.device) -> Pair:
    ours = random_imagebind(tower, size, dtype, device)
    trunk = StockTrunk(ours.sizes, ours.trunk.state_dict())
    stock = "nn.MultiheadAttention" if ours.sizes.extra_token else "nn.TransformerEncoderLayer"

    def theirs(x: Tensor) -> Tensor:
        return unit(ours.head(trunk(ours.preprocessor(x))[:, 0]))

    def inputs(count: int) -> Tensor:
        shape = ours.sizes.input
        shape = (shape[0], *shape[2:]) if len(shape) == 4 else shape  # pictures, not clips
        return torch.randn(count, *shape, dtype=dtype, device=device)

    return Pair(f"imagebind/{tower}", f"torch {stock}", ours, theirs, _count(ours), inputs)


class StockTrunk(nn.Module):
    """The transformer of an ImageBind tower, of torch's own modules, on the same tensors."""

    def __init__(self, sizes: ImageBindSizes, weights: dict[str, Tensor]) -> None:
        super().__init__()
        with torch.device("meta"):
            if sizes.pre_norm:
                self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(sizes.width, EPS))
            self.pre_norm = sizes.pre_norm
            make = StockBlock if sizes.extra_token else _stock_layer
            self.blocks = nn.ModuleList(make(sizes) for _ in range(sizes.blocks))
        renamed = {_stock_name(name): tensor for name, tensor in weights.items()}
        self.load_state_dict(renamed, assign=True)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_transformer_layer(x) if self.pre_norm else x
        for block in self.blocks:
            x = block(x)
        return x


class StockBlock(nn.Module):
    """torch's layer with nn.MultiheadAttention's `add_bias_kv`, which nn.TransformerEncoderLayer
    does not offer."""

    def __init__(self, sizes: ImageBindSizes) -> None:
        super().__init__()
        width = sizes.width
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.self_attn = nn.MultiheadAttention(
            width, sizes.heads, add_bias_kv=True, batch_first=True
        )
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return out


def _stock_layer(sizes: ImageBindSizes) -> nn.Module:
    return nn.TransformerEncoderLayer(
        sizes.width,
        sizes.heads,
        4 * sizes.width,
        activation="gelu",
        layer_norm_eps=EPS,
        batch_first=True,
        norm_first=True,
    )


def _stock_name(name: str) -> str:
    for ours, theirs in (
        ("norm_", "norm"),
        (".attn.", ".self_attn."),
        ("mlp.fc", "linear"),
    ):
        name = name.replace(ours, theirs)
    return name


def _languagebind_pair(tower: str, size: Size, dtype: torch.dtype, device: torch.device) -> Pair:
    side = "text" if tower == "text" else "vision"
    settings = _languagebind_settings(size)
    with torch.device("meta"):
        ours = LanguageBindTower(settings, side)
        stock = _stock_clip(settings, side)
    _fill(ours, dtype, device)
    weights = {name: t for name, t in ours.state_dict().items() if name != "logit_scale"}
    _assign(stock, weights, device)

    def theirs(x: Tensor) -> Tensor:
        out = stock(x)
        return unit(out.text_embeds if side == "text" else out.image_embeds)

    def inputs(count: int) -> Tensor:
        if side == "text":
            text = settings.text_config
            return torch.randint(text.vocab_size, (count, text.max_position_embeddings)).to(device)
        return torch.randn(count, *settings.vision_config.input, dtype=dtype, device=device)

    name = f"transformers {type(stock).__name__}"
    return Pair(f"languagebind/{tower}", name, ours, theirs, _count(ours), inputs)


def _languagebind_settings(size: Size) -> LanguageBindSettings:
    """The Large checkpoints' sizes, or smaller ones."""
    vision = VisionSettings(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        hidden_act="gelu",
    )
    text = TextSettings(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, hidden_act="gelu"
    )
    if size != "full":
        width, blocks, heads = _SMALLER[size]
        smaller = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": blocks,
            "num_attention_heads": heads,
        }
        vision, text = vision.model_copy(update=smaller), text.model_copy(update=smaller)
    return LanguageBindSettings(
        model_type="LanguageBindImage", projection_dim=768, text_config=text, vision_config=vision
    )


def _stock_clip(settings: LanguageBindSettings, side: str) -> nn.Module:
    own = settings.text_config if side == "text" else settings.vision_config
    values = {**own.model_dump(), "projection_dim": settings.projection_dim}
    if side == "text":
        names = (*_CLIP_FIELDS, "vocab_size", "max_position_embeddings")
        config = CLIPTextConfig(**{name: values[name] for name in names}, eos_token_id=2)
        text: nn.Module = CLIPTextModelWithProjection(config)
        return text
    names = (*_CLIP_FIELDS, "image_size", "patch_size")
    config = CLIPVisionConfig(**{name: values[name] for name in names})
    vision: nn.Module = CLIPVisionModelWithProjection(config)
    return vision


def _assign(stock: nn.Module, weights: dict[str, Tensor], device: torch.device) -> None:
    """Put the same tensors into a module without memory; its position ids are counted again."""
    stock.load_state_dict(weights, assign=True)
    for part in stock.modules():
        ids = getattr(part, "position_ids", None)
        if isinstance(ids, Tensor):
            part.position_ids = torch.arange(ids.shape[-1], device=device)[None]
    stock.eval().requires_grad_(False)


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
