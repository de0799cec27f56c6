"""Draws: reproducible bits, uniform, and independent between keys, purposes, epochs and views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from outmodal.data.draws import Draw, drawing, key_number, normal_quantiles

DRAW = Draw(seed=7, epoch=3, view="image")
CONSECUTIVE = torch.arange(4096)
HASHED = torch.tensor([key_number(f"{i:06d}") for i in range(4096)])


def test_the_bits_are_fixed() -> None:
    numbers = torch.tensor([0, 1, key_number("a"), 2**63 - 1])
    found = (Draw(1, 2, "x").uniforms(numbers, "op", 2) * 2**24).long()
    assert found.tolist() == [
        [10235565, 4610457],
        [14079768, 14717167],
        [7798933, 4328198],
        [4700544, 7892488],
    ]
    generator = Draw(1, 2, "x").generator("key", "word", 3)
    assert generator.integers(0, 1 << 30, 2).tolist() == [238712134, 740035162]


def _reference(first: int, second: int, key: int, place: int) -> int:
    """The same hash in Python's integers of any size."""

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0xD35A2D97 & 0xFFFFFFFF
        return x ^ x >> 15

    low, high = key & 0xFFFFFFFF, key >> 32
    outer, inner = mix(mix(low ^ first) ^ high), mix(mix(high ^ second) ^ low)
    return mix(mix(outer + place * 0x9E3779B9 & 0xFFFFFFFF) ^ inner) >> 8


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 1000))
def test_int64_arithmetic_is_that_of_unbounded_integers(key: int, seed: int, epoch: int) -> None:
    draw = Draw(seed, epoch, "v")
    digest = draw._digest("op", "word")
    words = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
    found = draw.uniforms(torch.tensor([key]), "word", 5)[0] * 2**24
    assert found.tolist() == [_reference(*words, key, place) for place in range(5)]


@pytest.mark.parametrize("keys", [CONSECUTIVE, HASHED, CONSECUTIVE << 32])
def test_numbers_are_uniform(keys: torch.Tensor) -> None:
    found = DRAW.uniforms(keys, "op", 64).double().numpy()
    assert found.min() >= 0
    assert found.max() < 1
    for numbers in (found.ravel(), found[:, 0], found[0], found[:, 63]):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-4
    levels = np.bincount((found * 65536).astype(int).ravel() & 255, minlength=256)
    assert stats.chisquare(levels).pvalue > 1e-4


def _unrelated(one: torch.Tensor, two: torch.Tensor) -> None:
    """Neither correlated nor dependent on a grid of 16 x 16."""
    a, b = one.double().ravel().numpy(), two.double().ravel().numpy()
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5
    grid = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(grid.ravel()).pvalue > 1e-5


def test_neighbours_are_independent() -> None:
    base = DRAW.uniforms(CONSECUTIVE, "op", 16)
    _unrelated(base[:-1], base[1:])  # keys
    _unrelated(base[:, :-1], base[:, 1:])  # places in the row
    for other in (
        DRAW.uniforms(CONSECUTIVE, "op 2", 16),
        replace(DRAW, epoch=4).uniforms(CONSECUTIVE, "op", 16),
        replace(DRAW, seed=8).uniforms(CONSECUTIVE, "op", 16),
        DRAW.of("speech").uniforms(CONSECUTIVE, "op", 16),
        DRAW.uniforms(CONSECUTIVE ^ (1 << 62), "op", 16),
    ):
        _unrelated(base, other)


def test_keys_rarely_meet() -> None:
    rows = DRAW.uniforms(torch.arange(200_000), "op", 3)
    assert len(torch.unique(rows, dim=0)) == 200_000  # two words of state, not one


def test_a_row_depends_on_its_key_alone() -> None:
    whole = DRAW.uniforms(HASHED, "op", 7)
    assert torch.equal(DRAW.uniforms(HASHED[100:101], "op", 7), whole[100:101])
    assert torch.equal(DRAW.uniforms(HASHED.flip(0), "op", 7), whole.flip(0))
    assert torch.equal(DRAW.uniforms(HASHED, "op", 3), whole[:, :3])
    assert DRAW.uniforms(HASHED[:0], "op", 3).shape == (0, 3)
    assert DRAW.uniforms(HASHED, "op", 0).shape == (4096, 0)


def test_words_of_a_draw_do_not_meet() -> None:
    found = [
        Draw(1, 12).uniforms(HASHED[:4], "op", 4),
        Draw(11, 2).uniforms(HASHED[:4], "op", 4),
        Draw(1, 12).uniforms(HASHED[:4], 1, 4),
        Draw(1, 12).uniforms(HASHED[:4], "1", 4),
        Draw(1, 12, "op").uniforms(HASHED[:4], "", 4),
    ]
    assert len({tuple(f.ravel().tolist()) for f in found}) == len(found)


def test_normals() -> None:
    found = DRAW.normals(HASHED, "op", 50)
    assert stats.kstest(found.double().ravel().numpy(), "norm").pvalue > 1e-4
    assert torch.equal(DRAW.normals(HASHED[5:6], "op", 50), found[5:6])
    assert torch.isfinite(DRAW.normals(torch.arange(1000), "op", 2000)).all()


def test_every_uniform_number_has_a_finite_quantile() -> None:
    step = 2.0**-24
    ends = torch.tensor([0.0, step, 0.5 - step, 0.5, 0.5 + step, 1 - 2 * step, 1 - step])
    found = normal_quantiles(ends)
    assert found.abs().max() < 5.5
    assert torch.equal(found, found.sort().values)
    assert found[0] < -5.2
    assert found[-1] > 5.2


def test_long_rows_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DRAW.normals(HASHED[:10], "op", 50)
    monkeypatch.setattr("outmodal.data.draws._CHUNK", 120)
    assert torch.equal(DRAW.normals(HASHED[:10], "op", 50), whole)
    monkeypatch.setattr("outmodal.data.draws._CHUNK", 10)
    assert torch.equal(DRAW.normals(HASHED[:10], "op", 50), whole)


def test_generators() -> None:
    first = DRAW.generator("key", "crop").random(2000)
    assert (first == DRAW.generator("key", "crop").random(2000)).all()
    others = [
        DRAW.generator("kez", "crop"),
        DRAW.generator("key", "crop", 1),
        DRAW.generator("key"),
        DRAW.of("speech").generator("key", "crop"),
        replace(DRAW, epoch=4).generator("key", "crop"),
        replace(DRAW, seed=8).generator("key", "crop"),
    ]
    for other in others:
        assert abs(np.corrcoef(first, other.random(2000))[0, 1]) < 0.12
    starts = [DRAW.generator(f"{i}", "crop").random() for i in range(2000)]
    assert stats.kstest(starts, "uniform").pvalue > 1e-4


def test_key_numbers() -> None:
    found = [key_number(f"clip-{i}") for i in range(20_000)]
    assert len(set(found)) == len(found)
    assert min(found) >= 0
    assert max(found) < 2**63
    assert key_number("Zürich/ü\udcff") == key_number("Zürich/ü\udcff")


def test_drawing() -> None:
    assert drawing(DRAW)
    assert not drawing(None)
    assert not drawing(replace(DRAW, policy="none"))
