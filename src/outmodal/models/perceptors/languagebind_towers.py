"""LanguageBind's towers: CLIP's two sides, over time and over any grid of patches.

Zhu et al., "LanguageBind: Extending Video-Language Pretraining to N-modality by Language-based
Semantic Alignment" (ICLR 2024). Keys and shapes are those of the released checkpoints, without
`position_ids` and with adapters folded in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.models.perceptors.languagebind_settings import (
    LanguageBindSettings,
    SideSettings,
    TextSettings,
    VisionSettings,
)
from outmodal.models.perceptors.towers import Mlp, attend, end_token, rows_at, unit

PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}
"""Side of a checkpoint -> name of its projection."""


class LanguageBindTower(nn.Module):
    """One side of a checkpoint: "vision" (also sound, depth and thermal pictures) or "text"."""

    def __init__(self, settings: LanguageBindSettings, side: str) -> None:
        super().__init__()
        self.side = side
        sizes: SideSettings = settings.text_config
        if side == "vision":
            sizes = settings.vision_config
            self.vision_model = VisionModel(settings.vision_config)
        else:
            self.text_model = TextModel(settings.text_config)
        projection = nn.Linear(sizes.hidden_size, settings.projection_dim, bias=False)
        self.add_module(PROJECTIONS[side], projection)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim] unit vectors of pictures [B, 3, H, W], clips [B, 3, T, H, W] or ids [B, L]."""
        return unit(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """[B, dim] before normalisation."""
        pooled = self.get_submodule(f"{self.side}_model")(x)
        out: Tensor = self.get_submodule(PROJECTIONS[self.side])(pooled)
        return out

    def scale(self) -> float:
        """Return what upstream multiplies all but text by; ours stay unscaled."""
        return float(self.logit_scale.detach().float().exp()) if self.side == "vision" else 1.0


class VisionModel(nn.Module):
    """Pooled output [B, width] of pictures, or the mean of that over the frames of clips."""

    def __init__(self, sizes: VisionSettings) -> None:
        super().__init__()
        self.input = sizes.input
        self.embeddings = PatchEmbeddings(sizes)
        # upstream's spelling
        self.pre_layrnorm = nn.LayerNorm(sizes.hidden_size, sizes.layer_norm_eps)
        frames = sizes.num_frames if sizes.add_time_attn else 0
        self.encoder = Encoder(sizes, causal=False, frames=frames)
        self.post_layernorm = nn.LayerNorm(sizes.hidden_size, sizes.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        x = self.encoder(self.embed(x))[:, 0]
        out: Tensor = self.post_layernorm(x)
        return out.reshape(rows, -1, out.shape[-1]).mean(1)

    def embed(self, x: Tensor) -> Tensor:
        """[B * T, 1 + patches, width], frames of one clip in a row."""
        if x.shape[1:] != self.input:
            raise ValueError(f"inputs have shape {tuple(x.shape[1:])}, not {self.input}")
        if x.ndim == 5:
            x = x.transpose(1, 2).flatten(0, 1)
        out: Tensor = self.pre_layrnorm(self.embeddings(x))
        return out


class PatchEmbeddings(nn.Module):
    """Patches [N, patches, width], a class token before them, positions added."""

    def __init__(self, sizes: VisionSettings) -> None:
        super().__init__()
        rows, columns = sizes.grid
        own = sizes.own_class_rows
        width = (sizes.num_frames, sizes.hidden_size) if own else (sizes.hidden_size,)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = Patches(sizes)
        self.position_embedding = nn.Embedding(1 + rows * columns, sizes.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embedding(x)
        own = self.class_embedding.reshape(-1, patches.shape[-1])
        # one class row for all frames, or row t for frame t of every clip
        first = own.repeat(len(x) // len(own), 1)[:, None]
        out: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        return out


class Patches(nn.Module):
    """Square patches of [N, C, H, W], row by row: [N, patches, width].

    V1.5 stores the kernel with a time axis of length 1.
    """

    def __init__(self, sizes: VisionSettings) -> None:
        super().__init__()
        self.size = sizes.patch_size
        time = (sizes.tube_size,) if sizes.own_class_rows else ()
        shape = (sizes.hidden_size, sizes.num_channels, *time, self.size, self.size)
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.reshape(*self.weight.shape[:2], self.size, self.size)
        return F.conv2d(x, kernel, stride=self.size).flatten(2).mT


class TextModel(nn.Module):
    """Pooled output [B, width] of token ids [B, L]: the end token's, after the last norm."""

    def __init__(self, sizes: TextSettings) -> None:
        super().__init__()
        self.embeddings = TokenEmbeddings(sizes)
        self.encoder = Encoder(sizes, causal=True)
        self.final_layer_norm = nn.LayerNorm(sizes.hidden_size, sizes.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.final_layer_norm(self.encoder(self.embeddings(ids)))
        return rows_at(out, end_token(ids))


class TokenEmbeddings(nn.Module):
    """Embedded token ids, positions added: [B, L, width]."""

    def __init__(self, sizes: TextSettings) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.position_embedding = nn.Embedding(sizes.max_position_embeddings, sizes.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.token_embedding(ids)
        return out + self.position_embedding.weight[: ids.shape[1]]


class Encoder(nn.Module):
    """The layers; no norm at their end."""

    def __init__(self, sizes: SideSettings, *, causal: bool, frames: int = 0) -> None:
        super().__init__()
        count = sizes.num_hidden_layers
        self.layers = nn.ModuleList(Layer(sizes, causal, frames) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    """Attention over frames for clips, then a layer of CLIP: [N, L, width] to the same shape."""

    def __init__(self, sizes: SideSettings, causal: bool, frames: int) -> None:
        super().__init__()
        width, eps = sizes.hidden_size, sizes.layer_norm_eps
        self.causal, self.frames = causal, frames
        if frames:
            self.temporal_embedding = nn.Parameter(torch.zeros(1, frames, width))
            self.temporal_attn = Attention(width, sizes.num_attention_heads)
            self.temporal_layer_norm1 = nn.LayerNorm(width, eps)
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = Attention(width, sizes.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, sizes.intermediate_size, sizes.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        if self.frames:
            x = self._over_frames(x)
        x = x + self.self_attn(self.layer_norm1(x), self.causal)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out

    def _over_frames(self, x: Tensor) -> Tensor:
        """Let each position attend over its frames; the frame embedding stays in the stream."""
        positions, width = x.shape[1:]
        x = x.reshape(-1, self.frames, positions, width).transpose(1, 2).flatten(0, 1)
        if self.frames > 1:
            x = x + self.temporal_embedding
        x = x + self.temporal_attn(self.temporal_layer_norm1(x))
        return x.reshape(-1, positions, self.frames, width).transpose(1, 2).flatten(0, 1)


class Attention(nn.Module):
    """Self-attention with a projection each for queries, keys, values and the result."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        out: Tensor = self.out_proj(attend(q, k, v, self.heads, causal=causal))
        return out
