"""Connections between feature spaces: linear, and the variational bottleneck of COX."""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.base import Config
from outmodal.models.heads import init_linear


class LinearConnector(nn.Module):
    """One linear layer, with LayerNorm after it where asked: u [B, inputs] -> v [B, outputs]."""

    def __init__(self, inputs: int, outputs: int, layer_norm: bool = True) -> None:
        super().__init__()
        self.linear = init_linear(nn.Linear(inputs, outputs))
        self.norm: nn.Module = nn.LayerNorm(outputs) if layer_norm else nn.Identity()

    def forward(self, u: Tensor) -> Tensor:
        """Return v [B, outputs]."""
        v: Tensor = self.norm(self.linear(u))
        return v


class VIBConfig(Config):
    """Sizes of the bottleneck. The defaults are those of COX's released code.

    Attributes:
        hidden: Width of the two hidden layers of encoder and decoder.
        latent: Size q of the bottleneck.
    """

    hidden: int = Field(default=1024, gt=0)
    latent: int = Field(default=256, gt=0)


class VIB(nn.Module):
    """Variational information bottleneck autoencoder, the connection c_k of COX (ICLR 2025).

    Encoder inputs -> hidden -> hidden -> 2q, decoder q -> hidden -> hidden -> outputs, ReLU. The
    encoder's first half is the mean mu, the second the log-variance s; w = mu + exp(s/2) noise.

    Attributes:
        latent: q, the size of the noise.
    """

    def __init__(self, inputs: int, outputs: int, config: VIBConfig | None = None) -> None:
        super().__init__()
        config = config or VIBConfig()
        self.latent = config.latent
        self.encoder = _perceptron(inputs, config.hidden, config.hidden, 2 * config.latent)
        self.decoder = _perceptron(config.latent, config.hidden, config.hidden, outputs)

    def forward(self, u: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map features.

        Args:
            u: [B, inputs] perceptor features.
            noise: [B, q] draws of N(0, I), the caller's so that they repeat; None uses the mean,
                as anchors, the heads' refit and evaluation do.

        Returns:
            v [B, outputs].
        """
        mean, log_variance = self.encode(u)
        w = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise.to(mean.dtype)
        v: Tensor = self.decoder(w)
        return v

    def encode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of w, each [B, q]."""
        mean, log_variance = self.encoder(u).chunk(2, dim=-1)
        return mean, log_variance


def prior_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, I)) for each row [B], in fp32, in nats."""
    mean, log_variance = mean.float(), log_variance.float()
    terms = log_variance.exp() + mean.square() - 1.0 - log_variance
    return 0.5 * terms.sum(dim=-1)


def _perceptron(*sizes: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = [init_linear(nn.Linear(sizes[0], sizes[1]))]
    for before, after in pairwise(sizes[1:]):
        layers += [nn.ReLU(), init_linear(nn.Linear(before, after), gain=2.0)]
    return nn.Sequential(*layers)
