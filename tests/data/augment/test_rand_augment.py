"""RandAugment against Pillow: each operation, and the shares and strengths that are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Tensor

from outmodal.data.augment import tables
from outmodal.data.augment.affine import about_centre, move
from outmodal.data.augment.rand_augment import OPERATIONS, RandAugment
from tests.data.augment.common import applied, keys, numbers_of, pictures
from tests.data.augment.test_pictures import bytes_of, close, pil

SIZE = (20, 17)


def transformed(image: Image.Image, matrix: Tensor) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix.flatten().tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=(128,) * len(image.getbands()) if len(image.getbands()) > 1 else 128,
    )


def expected(image: Image.Image, name: str, level: float, side: float) -> Image.Image:
    """What timm's operation of this strength (0..1) does; `side` is 1 or -1."""
    factor, (width, height) = 0.1 + 1.8 * level, image.size
    signed = level * side
    enhancers = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(factor)
    shears = {
        "shear_x": (1, 0.3 * signed, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * signed, 1, 0),
        "translate_x": (1, 0, 0.45 * signed * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * signed * height),
    }
    if name in shears:
        return transformed(image, torch.tensor(shears[name], dtype=torch.float64))
    if name == "rotate":
        angle = math.radians(30 * signed)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = width / 2, height / 2
        rows = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
        return transformed(image, torch.tensor(rows, dtype=torch.float64))
    if name == "posterize":
        bits = int(4 * level)
        return ImageOps.posterize(image, bits) if bits else image.point(lambda _: 0)
    if name == "solarize":
        return ImageOps.solarize(image, int(256 * level))
    simple: dict[str, Callable[[Image.Image], Image.Image]] = {
        "identity": lambda i: i,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }
    return simple[name](image)


@pytest.mark.parametrize(("channels", "magnitude"), [(1, 6.0), (3, 6.0), (3, 15.0)])
def test_every_operation_is_pillows(channels: int, magnitude: float) -> None:
    step = RandAugment(n=1, magnitude=magnitude, std=2.0, share=1.0, fill=128 / 255)
    x, numbers = pictures(420, channels, SIZE), keys(420)
    out = applied(step, x, numbers)
    drawn = numbers_of(step, numbers, 4)
    seen = set()
    for row in range(len(x)):
        name = OPERATIONS[int(drawn[row, 0] * len(OPERATIONS))]
        strength = magnitude + 2.0 * float(stats.norm.ppf(drawn[row, 1]))
        level = min(max(strength, 0.0), max(10.0, magnitude)) / 10
        theirs = expected(pil(x[row]), name, level, -1.0 if drawn[row, 3] < 0.5 else 1.0)
        seen.add(name)
        if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
            difference = np.abs(bytes_of(out[row]) - np.asarray(theirs, float).reshape(*SIZE, -1))
            # a pixel on the very edge may fall on either side of it
            assert (difference > 1.5).mean() < 0.06, (name, row)
        else:
            close(out[row], theirs, 1.0)
    assert seen == set(OPERATIONS)


def test_operations_and_strengths_are_drawn_as_said() -> None:
    step = RandAugment(n=2, magnitude=9.0, std=0.5, share=0.5)
    drawn = numbers_of(step, keys(6000), 8).view(6000, 2, 4)
    picked = (drawn[:, 0, 0] * len(OPERATIONS)).long()
    assert stats.chisquare(torch.bincount(picked, minlength=14).numpy()).pvalue > 1e-4
    level = step._level(drawn[:, 1, 1]).double() * 10
    assert abs(float(level.mean()) - 9.0) < 0.05
    assert level.max() <= 10.0
    below = level[level < 9.9].numpy()  # the rest of the normal one is cut at 10
    reference = stats.truncnorm(-18.0, 1.8, loc=9.0, scale=0.5)
    assert stats.kstest(below, reference.cdf).pvalue > 1e-4


def test_share_is_that_of_rounds() -> None:
    x, numbers = pictures(1500, 3, SIZE), keys(1500)
    for n, share in ((1, 0.5), (2, 0.5), (1, 1.0)):
        out = applied(RandAugment(n=n, share=share), x, numbers)
        changed = float((out != x).flatten(1).any(1).float().mean())
        # identity changes nothing, nor does solarize at this strength: no level is so bright
        assert abs(changed - (1 - (1 - share * 12 / 14) ** n)) < 0.05


def test_increasing_strength() -> None:
    level = torch.tensor([0.0, 0.5, 1.0])
    side = torch.tensor([1.0, -1.0, 1.0])
    growing, fixed = RandAugment(increasing=True), RandAugment()
    np.testing.assert_allclose(growing._factor(level, side), [1.0, 0.55, 1.9], atol=1e-6)
    np.testing.assert_allclose(fixed._factor(level, side), [0.1, 1.0, 1.9], atol=1e-6)
    levels = torch.arange(256).view(1, 1, 16, 16).expand(3, 1, 16, 16)
    one = growing._tables(levels, level, growing._factor(level, side))
    assert torch.equal(one["posterize"][0, 0], torch.arange(256) // 16 * 16.0)  # 4 bits are left
    assert one["posterize"][2].eq(0).all()
    assert one["solarize"][0, 0].tolist() == list(range(256))
    assert one["solarize"][2, 0].tolist() == list(range(255, -1, -1))


@pytest.mark.parametrize("kind", ["flat", "two", "full", "dark"])
def test_tables_at_the_edges_are_pillows(kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randint(0, 256, (6, 3, 30, 31), generator=generator)
    pixels = {
        "flat": torch.full_like(drawn, 77),
        "two": torch.where(drawn > 100, 200, 3),
        "full": drawn,
        "dark": drawn // 40,
    }[kind]
    counts = tables.histogram(pixels)
    assert torch.equal(counts[1, 2], torch.bincount(pixels[1, 2].ravel(), minlength=256))
    stretched = tables.lookup(pixels, tables.autocontrast(counts).expand(6, 3, 256))
    even = tables.lookup(pixels, tables.equalize(counts).expand(6, 3, 256))
    for row in range(6):
        image = pil(pixels[row] / 255)
        close(stretched[row] / 255, ImageOps.autocontrast(image), 0)
        close(even[row] / 255, ImageOps.equalize(image), 0)


def test_sixteen_bits_stay_where_nothing_happens() -> None:
    x = torch.rand(30, 1, 8, 8)
    out = applied(RandAugment(n=1, share=0.5), x, keys(30))
    same = (out == x).flatten(1).all(1)
    assert 5 < int(same.sum()) < 25


def test_moves_about_the_centre() -> None:
    x = pictures(2, 3, (9, 9))
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).expand(2, 2, 2)
    turned = move(x, about_centre(turn, 9, 9), 0.5)
    torch.testing.assert_close(turned, torch.rot90(x, -1, (2, 3)), atol=1e-5, rtol=0)
    away = torch.tensor([[1.0, 0.0, 20.0], [0.0, 1.0, 0.0]]).expand(2, 2, 3)
    assert move(x, away, 0.5).eq(0.5).all()
