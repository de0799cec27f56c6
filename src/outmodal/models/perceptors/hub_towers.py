"""The modules of hub perceptors: one transformers model, one way to take a vector out of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Pool = Literal["projection", "pooler", "first", "mean"]

PROJECTIONS = {
    "image": "get_image_features",
    "audio": "get_audio_features",
    "text": "get_text_features",
}
"""Modality kind -> method of a dual encoder (CLIP, CLAP) that gives the shared embedding."""


class HubTower(nn.Module):
    """Runs a model on one named input and pools its output to [B, d]."""

    def __init__(
        self, model: nn.Module, argument: str, pool: Pool, projection: str, extra: dict[str, Any]
    ) -> None:
        """
        Args:
            model: A transformers model.
            argument: Name of its input: pixel_values, input_values, input_features, input_ids.
            pool: How the output becomes a vector.
            projection: Method to call for pool "projection".
            extra: Further arguments, a tensor's value for every row ([1, ...], expanded).
        """
        super().__init__()
        self.model = model
        self.argument = argument
        self.pool = pool
        self.projection = projection
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        inputs = {self.argument: x}
        for name, value in self.extra.items():
            inputs[name] = value.to(x.device).expand(len(x), *value.shape[1:])
        if self.pool == "projection":
            out = getattr(self.model, self.projection)(**inputs)
            return _vector(out if isinstance(out, Tensor) else out.pooler_output)
        out = self.model(**inputs)
        if self.pool == "pooler":
            return _vector(out.pooler_output)
        hidden: Tensor = out.last_hidden_state
        return hidden[:, 0] if self.pool == "first" else hidden.flatten(2).mean(1)


def _vector(pooled: Tensor) -> Tensor:
    """[B, d] from [B, d] or from a convolutional pooler's [B, d, 1, 1]."""
    return pooled.flatten(1)


class OwnLength(nn.Module):
    """Runs every row without its filling: rows of one length go through `tower` together."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what runs at each length, for any length from the start: they all differ."""
        self.tower.compile(*args, dynamic=True, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d] for x [B, T] filled up with NaN (sounds) or -1 (tokens)."""
        held = x.isfinite() if x.is_floating_point() else x >= 0
        lengths = held.sum(1).clamp(min=1)
        out: Tensor | None = None
        for length in sorted(set(lengths.tolist())):
            rows = (lengths == length).nonzero()[:, 0]
            part = self.tower(x[rows, : int(length)])
            if out is None:
                out = torch.empty(len(x), part.shape[1], dtype=part.dtype, device=part.device)
            out[rows] = part
        assert out is not None, "a batch of no rows"
        return out
