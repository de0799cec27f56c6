"""The bottleneck of COX follows its equations; connectors reach every weight."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from outmodal.models.connectors import VIB, LinearConnector, VIBConfig, prior_divergence


def test_sizes_of_the_released_code() -> None:
    vib = VIB(768, 192)
    shapes = [tuple(p.shape) for n, p in vib.named_parameters() if n.endswith("weight")]
    assert shapes == [
        (1024, 768),
        (1024, 1024),
        (512, 1024),
        (1024, 256),
        (1024, 1024),
        (192, 1024),
    ]
    assert vib.latent == 256


def test_noise_scales_with_the_encoded_deviation() -> None:
    torch.manual_seed(0)
    vib = VIB(20, 12, VIBConfig(hidden=32, latent=8))
    u, noise = torch.randn(5, 20), torch.randn(5, 8)
    mean, log_variance = vib.encode(u)
    assert mean.shape == log_variance.shape == (5, 8)
    expected = vib.decoder(mean + torch.exp(log_variance / 2) * noise)
    torch.testing.assert_close(vib(u, noise), expected)
    assert torch.equal(vib(u), vib.decoder(mean))
    assert torch.equal(vib(u, torch.zeros(5, 8)), vib(u, None))


def test_sampling_reaches_every_weight_and_the_mean_only_its_half() -> None:
    vib = VIB(20, 12, VIBConfig(hidden=32, latent=8))
    u = torch.randn(5, 20)
    vib(u, torch.randn(5, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in vib.parameters())
    vib.zero_grad()
    vib(u).square().sum().backward()
    last = vib.encoder[-1].weight.grad
    assert last[:8].any()
    assert not last[8:].any()


def test_starts_at_unit_scale() -> None:
    torch.manual_seed(0)
    v = VIB(512, 256)(torch.randn(200, 512))
    assert float(v.detach().std()) == pytest.approx(1.0, abs=0.4)


def test_divergence_equals_torch_distributions() -> None:
    mean, log_variance = torch.randn(6, 8), torch.randn(6, 8)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior_divergence(mean, log_variance), theirs)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_linear_connector(layer_norm: bool) -> None:
    connector = LinearConnector(20, 12, layer_norm)
    v = connector(torch.randn(50, 20))
    assert v.shape == (50, 12)
    if layer_norm:
        torch.testing.assert_close(v.std(1, correction=0), torch.ones(50), atol=1e-3, rtol=0)
    (v * torch.randn(12)).sum().backward()
    assert all(p.grad is not None for p in connector.parameters())
