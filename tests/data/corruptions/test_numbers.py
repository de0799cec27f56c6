"""Noise and lost values of series and vectors: as strong as they say, and drawn by the key."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from outmodal.data.corruptions import CORRUPTIONS, SEVERITIES, generator, numbers
from outmodal.data.manifest import Modality

SPEC = Modality(kind="series", ext="npy")
SERIES = np.random.default_rng(0).normal(3.0, [1.0, 5.0], (4000, 2)).astype(np.float32)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_is_as_strong_as_it_says(severity: int) -> None:
    noisy = np.asarray(numbers.noise(SPEC, SERIES, severity, generator(0, "noise", "k")))
    spread = (noisy - SERIES).std(axis=0) / SERIES.std(axis=0)
    np.testing.assert_allclose(spread, numbers.NOISE[severity - 1], rtol=0.05)
    assert noisy.dtype == np.float32


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_share_that_is_lost(severity: int) -> None:
    share = numbers.LOST[severity - 1]
    dropped = np.asarray(numbers.dropout(SPEC, SERIES, severity, generator(0, "dropout", "k")))
    gone = (dropped == 0).all(axis=1)
    assert gone.mean() == pytest.approx(share, abs=0.03)
    assert np.array_equal(dropped[~gone], SERIES[~gone])
    cut = np.asarray(numbers.gap(SPEC, SERIES, severity, generator(0, "gap", "k")))
    (where,) = np.nonzero((cut == 0).all(axis=1))
    assert len(where) == round(share * len(SERIES)) == where[-1] - where[0] + 1


def test_a_stronger_one_loses_what_a_milder_one_loses() -> None:
    lost = [
        np.asarray(numbers.dropout(SPEC, SERIES, s, generator(0, "dropout", "k")))[:, 0] == 0
        for s in SEVERITIES
    ]
    for mild, strong in pairwise(lost):
        assert (strong | ~mild).all()


@pytest.mark.parametrize("kind", ["series", "vector"])
def test_values_that_never_vary_and_short_ones(kind: str) -> None:
    spec = Modality(kind=kind, ext="npy")  # type: ignore[arg-type]
    for value in (np.ones((1, 2), np.float32), np.zeros((5, 3), np.float32)):
        held = value[:, 0] if kind == "vector" else value
        for act in CORRUPTIONS[kind].values():
            for severity in SEVERITIES:
                made = np.asarray(act(spec, held, severity, generator(0, "x", "k")))
                assert made.shape == held.shape
                assert np.isfinite(made).all()


def test_the_value_itself_is_not_touched() -> None:
    before = SERIES.copy()
    for act in CORRUPTIONS["series"].values():
        act(SPEC, SERIES, 5, generator(0, "x", "k"))
    assert np.array_equal(before, SERIES)
