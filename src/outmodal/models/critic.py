"""Critics: is this pair of representations of one sample, or of two that share a context?

A critic gives s(r^1, r^2, T); h = sigma(s + gamma) is the probability that the pair is of one
sample, with gamma = log(N1 / N0) for N0 negatives to N1 positives, so that s estimates the
pointwise mutual information given T. It has no bias on its output: gamma is the bias.

Source: Li et al., "InfoBridge: Balanced Multimodal Integration through Conditional Dependency
Modeling", ICCV 2025, equations 1 to 8. The paper leaves the critic's form open.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.models.heads import init_linear

CriticKind = Literal["mlp", "bilinear"]

WIDTH = 256  # of a projected representation
CONTEXT = 64  # of a context's embedding
HIDDEN = 512


class Critic(nn.Module, ABC):
    """s(r^1, r^2, T) of pairs.

    Args:
        first, second: Sizes of the representations.
        contexts: How many values T has, 0 .. contexts - 1.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Sequential(init_linear(nn.Linear(size, WIDTH)), nn.LayerNorm(WIDTH))
            for size in (first, second)
        )

    def forward(self, r1: Tensor, r2: Tensor, context: Tensor) -> Tensor:
        """s [...] in fp32, whatever the surrounding precision.

        Args:
            r1, r2: [..., d]; leading axes broadcast against each other.
            context: [...] int64.
        """
        with torch.autocast(r1.device.type, enabled=False):
            return self.score(*self.projected(r1, r2), context).float()

    def projected(self, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
        """The representations side by side, [..., 256] each, as `retrieval` contexts compare."""
        weight = next(self.parameters())  # the engine may hold bf16 weights
        p1, p2 = self.project[0](r1.to(weight.dtype)), self.project[1](r2.to(weight.dtype))
        return p1, p2

    @abstractmethod
    def score(self, p1: Tensor, p2: Tensor, context: Tensor) -> Tensor:
        """s [...] of projected pairs."""


class MlpCritic(Critic):
    """A perceptron on [p1, p2, p1 * p2, embedding of T]."""

    def __init__(self, first: int, second: int, contexts: int) -> None:
        super().__init__(first, second)
        self.context = nn.Embedding(contexts, CONTEXT)
        self.layers = nn.Sequential(
            init_linear(nn.Linear(3 * WIDTH + CONTEXT, HIDDEN)),
            nn.GELU(),
            init_linear(nn.Linear(HIDDEN, HIDDEN), gain=2.0),
            nn.GELU(),
            init_linear(nn.Linear(HIDDEN, 1, bias=False), gain=2.0),
        )

    def score(self, p1: Tensor, p2: Tensor, context: Tensor) -> Tensor:
        both = p1 * p2
        t = self.context(context.expand(both.shape[:-1]))
        wide = torch.cat([p1.expand_as(both), p2.expand_as(both), both, t], dim=-1)
        out: Tensor = self.layers(wide)
        return out[..., 0]


class BilinearCritic(Critic):
    """kappa * cos(p1 * (1 + a_T), p2), with a vector a_T of each context, zero at first."""

    def __init__(self, first: int, second: int, contexts: int) -> None:
        super().__init__(first, second)
        self.context = nn.Embedding(contexts, WIDTH)
        nn.init.zeros_(self.context.weight)
        self.kappa = nn.Parameter(torch.full((1,), 10.0))

    def score(self, p1: Tensor, p2: Tensor, context: Tensor) -> Tensor:
        turned = p1.float() * (1 + self.context(context).float())
        return self.kappa.float()[0] * F.cosine_similarity(turned, p2.float(), dim=-1, eps=1e-6)


def build_critic(kind: CriticKind, first: int, second: int, contexts: int) -> Critic:
    """Make a critic with new weights for representations of these sizes."""
    made = MlpCritic if kind == "mlp" else BilinearCritic
    return made(first, second, contexts)


def margin(negatives: int, positives: int = 1) -> float:
    """gamma = log(N1 / N0), what a critic's score is shifted by."""
    return math.log(positives / negatives)


def nce_rows(positive: Tensor, negative: Tensor, gamma: float) -> Tensor:
    """Noise-contrastive objective of each pair, to be *maximised* (equation 1).

    log h_pos + N0/N1 * mean_b log(1 - h_neg,b), with N0/N1 = exp(-gamma).

    Args:
        positive: [B] scores s of pairs of one sample.
        negative: [B, K] scores of negatives, any number of them.
        gamma: See `margin`.

    Returns:
        [B], at most 0; at s = 0 and five negatives -2.70.
    """
    refused = F.logsigmoid(-(negative.float() + gamma)).mean(dim=1)
    return F.logsigmoid(positive.float() + gamma) + math.exp(-gamma) * refused


def information_rows(positive: Tensor, gamma: float) -> Tensor:
    """log(N0 / N1) + log h_pos of each pair [B]; its mean bounds I(r^1; r^2 | T) from below, in
    nats (equations 4 and 8, whose printed margin has the sign of its logarithm turned)."""
    return F.logsigmoid(positive.float() + gamma) - gamma
