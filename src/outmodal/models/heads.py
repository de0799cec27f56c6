"""Heads on representations: projections into an embedding space, and linear classifiers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from outmodal.base import Config
from outmodal.models.features import unit_norm

Kind = Literal["linear", "linear_ln", "mlp", "mlp3"]


def init_linear(layer: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Set the weight to N(0, gain / inputs) and the bias to zero; return the layer.

    Gain 2 makes up for what a ReLU or GELU before the layer took away (He et al., ICCV 2015).
    """
    nn.init.normal_(layer.weight, std=(gain / layer.in_features) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def linear_classifier(dim: int, classes: int) -> nn.Linear:
    """Return a linear layer from representations [B, dim] to logits [B, classes]."""
    return init_linear(nn.Linear(dim, classes))


class HeadConfig(Config):
    """Projection from representation to embedding.

    Attributes:
        kind: One linear layer; the same with LayerNorm behind it (linear_ln); two with LayerNorm
            and GELU between (mlp); or three with ReLU between (mlp3, the head of OVA-IB, arXiv
            2605.29900).
        dim: Size of the embedding.
        hidden: Width between, for mlp and mlp3; None takes the representation's size.
    """

    kind: Kind = "linear"
    dim: int = Field(default=128, gt=0)
    hidden: int | None = Field(default=None, gt=0)


class ProjectionHead(nn.Module):
    """Projection g: r [B, inputs] -> e [B, dim]. It does not normalise; see `unit_norm`.

    Attributes:
        kind: "linear", "linear_ln", "mlp" or "mlp3".
        inputs, dim, hidden: Sizes, enough to make the head again from its weights.
    """

    def __init__(
        self, inputs: int, dim: int, kind: Kind = "linear", hidden: int | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.inputs = inputs
        self.dim = dim
        self.hidden = hidden or inputs
        self.layers = _layers(inputs, dim, kind, self.hidden)

    def forward(self, r: Tensor) -> Tensor:
        """Return e [B, dim]."""
        e: Tensor = self.layers(r)
        return e


def _layers(inputs: int, dim: int, kind: Kind, hidden: int) -> nn.Sequential:
    if kind == "linear":
        return nn.Sequential(init_linear(nn.Linear(inputs, dim)))
    if kind == "linear_ln":
        return nn.Sequential(init_linear(nn.Linear(inputs, dim)), nn.LayerNorm(dim))
    if kind == "mlp3":
        return nn.Sequential(
            init_linear(nn.Linear(inputs, hidden)),
            nn.ReLU(),
            init_linear(nn.Linear(hidden, hidden), gain=2.0),
            nn.ReLU(),
            init_linear(nn.Linear(hidden, dim), gain=2.0),
        )
    return nn.Sequential(
        init_linear(nn.Linear(inputs, hidden)),
        nn.LayerNorm(hidden),
        nn.GELU(),
        init_linear(nn.Linear(hidden, dim), gain=2.0),
    )


__all__ = ["HeadConfig", "ProjectionHead", "init_linear", "linear_classifier", "unit_norm"]
