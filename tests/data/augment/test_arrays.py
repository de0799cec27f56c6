"""Augmentations of series, vectors and texts against their formulas."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from scipy import stats

from outmodal.data.augment import Pipeline
from outmodal.data.augment.text import templates
from tests.data.augment.common import DRAW, applied, keys, made, numbers_of


def series(count: int = 500, length: int = 30, channels: int = 4) -> torch.Tensor:
    return torch.randn(count, length, channels, generator=torch.Generator().manual_seed(2))


def test_jitter_is_normal_noise() -> None:
    x = series()
    noise = (applied(made(name="jitter", sigma=0.2), x, keys(500)) - x) / 0.2
    assert stats.kstest(noise.double().ravel().numpy()[:20_000], "norm").pvalue > 1e-4


def test_scaling_is_a_normal_factor_for_each_channel() -> None:
    x = series(2000, 3) + 10
    factors = applied(made(name="scaling", sigma=0.1), x, keys(2000)) / x
    torch.testing.assert_close(factors[:, 0], factors[:, 2], rtol=1e-4, atol=0)
    found = ((factors[:, 0] - 1) / 0.1).double()
    assert stats.kstest(found.ravel().numpy(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(found.numpy().T)[0, 1]) < 0.1


def test_windows_are_stretched_linearly() -> None:
    step = made(name="window", share=(0.5, 0.9))
    x, numbers = series(200), keys(200)
    out = applied(step, x, numbers)
    drawn = numbers_of(step, numbers, 2).double().numpy()
    for row in range(200):
        span = (0.5 + 0.4 * drawn[row, 0]) * 29
        places = drawn[row, 1] * (29 - span) + span * np.linspace(0, 1, 30)
        for channel in range(4):
            expected = np.interp(places, np.arange(30), x[row, :, channel].numpy())
            np.testing.assert_allclose(out[row, :, channel].numpy(), expected, atol=1e-4)
    whole = applied(made(name="window", share=(1.0, 1.0)), x, numbers)
    torch.testing.assert_close(whole, x, atol=1e-5, rtol=0)
    single = x[:, :1]
    assert torch.equal(applied(step, single, numbers), single)


def test_channels_are_dropped_independently() -> None:
    x = series(3000, 5) + 20
    out = applied(made(name="channel_dropout", rate=0.3), x, keys(3000))
    gone = (out == 0).all(1)
    assert torch.equal(gone, (out == 0).any(1))
    assert torch.equal(out[~gone[:, None].expand_as(out)], x[~gone[:, None].expand_as(x)])
    found = torch.bincount(gone.sum(1), minlength=5).numpy()
    expected = stats.binom(4, 0.3).pmf(np.arange(5)) * 3000
    assert stats.chisquare(found, expected).pvalue > 1e-4


def test_time_masks() -> None:
    x = series(2000, 20) + 20
    out = applied(made(name="time_mask", share=0.25), x, keys(2000))
    gone = (out == 0).all(2)
    assert torch.equal(gone, (out == 0).any(2))
    width = torch.bincount(gone.sum(1), minlength=6)
    assert len(width) == 6
    assert stats.chisquare(width.numpy()).pvalue > 1e-4


def test_vectors_get_noise_in_their_own_unit() -> None:
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(5)) * torch.linspace(
        0.1, 30.0, 400
    ).view(-1, 1)
    noise = applied(made(name="feature_noise", sigma=0.5), x, keys(400)) - x
    unit = (noise / x.std(1, correction=0, keepdim=True) / 0.5).double()
    assert stats.kstest(unit.ravel().numpy(), "norm").pvalue > 1e-4


def test_vectors_keep_their_mean_under_dropout() -> None:
    x = torch.ones(500, 100)
    out = applied(made(name="feature_dropout", rate=0.2), x, keys(500))
    assert set(out.ravel().tolist()) == {0.0, 1.25}
    assert abs((out == 0).float().mean() - 0.2) < 0.01


def drawn_texts(text: str, count: int = 3000, **settings: Any) -> list[str]:
    pipeline = Pipeline([made(**settings)])
    return [pipeline.sample(text, f"{i}", DRAW) for i in range(count)]


def test_templates_are_equally_likely() -> None:
    sentences = ("a {}.", "one {} {{here}}", "{}")
    found = Counter(drawn_texts("{dog}", name="templates", templates=sentences))
    assert set(found) == {"a {dog}.", "one {dog} {{here}}", "{dog}"}
    assert stats.chisquare(list(found.values())).pvalue > 1e-4
    step = made(name="templates", templates=sentences, p=0.0)
    assert Pipeline([step]).sample("dog", "k", DRAW) == "dog"
    assert templates([step, made(name="hflip")]) == ["a  .", "one   {{here}}", " "]


def test_words_are_dropped_independently() -> None:
    words = ["a", "b", "c", "d", "e"]
    texts = [out.split() for out in drawn_texts("a b  c d e", name="word_dropout", rate=0.4)]
    assert all(out == [w for w in words if w in out] for out in texts)  # order is kept
    counts = np.bincount([len(out) for out in texts], minlength=6)
    expected = stats.binom(5, 0.6).pmf(np.arange(6)) * 3000
    assert counts[0] == 0
    expected[1] += expected[0]
    assert stats.chisquare(counts[1:], expected[1:]).pvalue > 1e-4
    last = Counter(drawn_texts("a b", 1000, name="word_dropout", rate=1.0))
    assert abs(last["a"] - 500) < 80
    assert last["a"] + last["b"] == 1000
    assert drawn_texts("", 2, name="word_dropout") == ["", ""]
