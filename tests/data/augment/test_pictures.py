"""Augmentations of pictures against Pillow, scipy and colorsys, picture by picture."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage, stats
from torch import Tensor

from outmodal.data.augment.colour import ColorJitter
from outmodal.data.augment.crop import PadCrop, RandomResizedCrop
from outmodal.data.augment.erasing import RandomErasing
from outmodal.data.augment.shades import turn_hue
from tests.data.augment.common import DRAW, applied, keys, made, numbers_of, pictures, word

LEVEL = 1.0 / 255.0


def bytes_of(x: Tensor) -> NDArray[np.uint8]:
    """[C, H, W] in 0..1 to [H, W, C] levels."""
    return (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def pil(x: Tensor) -> Image.Image:
    pixels = bytes_of(x)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def close(x: Tensor, expected: Image.Image, levels: float) -> None:
    theirs = np.asarray(expected, np.float64)
    theirs = theirs.reshape(*theirs.shape[:2], -1).transpose(2, 0, 1)
    np.testing.assert_allclose(x.numpy() * 255, theirs, atol=levels + 1e-3)


@pytest.mark.parametrize(("name", "axis"), [("hflip", 2), ("vflip", 1)])
def test_flips(name: str, axis: int) -> None:
    x = pictures(1000)
    out = applied(made(name=name), x, keys(1000))
    flipped = (out == x.flip(axis + 1)).flatten(1).all(1)
    same = (out == x).flatten(1).all(1)
    assert (flipped | same).all()
    assert abs(flipped.float().mean() - 0.5) < 0.05


@pytest.mark.parametrize(("fill", "mode"), [(0.25, "constant"), (None, "reflect")])
def test_padded_crops_lie_everywhere_equally(fill: float | None, mode: str) -> None:
    step = PadCrop(pad=2, fill=fill)
    x, numbers = pictures(1500, size=(5, 4)), keys(1500)
    out = applied(step, x, numbers)
    options = {"constant_values": fill} if fill is not None else {}
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode=mode, **options)  # type: ignore[call-overload]
    found = np.zeros((5, 5))
    for row in range(1500):
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (padded[row, :, top : top + 5, left : left + 4] == out[row].numpy()).all()
        ]
        assert len(places) == 1
        found[places[0]] += 1
    assert stats.chisquare(found.ravel()).pvalue > 1e-4


def test_random_resized_crops() -> None:
    step = RandomResizedCrop(scale=(0.2, 0.8), ratio=(0.5, 2.0), p=0.7)
    boxes = [step.box(400, 300, DRAW.generator(f"{i}", "crop")) for i in range(2000)]
    drawn = [box for box in boxes if box is not None]
    assert abs(len(drawn) / 2000 - 0.7) < 0.05
    area = np.array([box.height * box.width / 120_000 for box in drawn])
    ratio = np.array([box.width / box.height for box in drawn])
    assert 0.19 < area.min() < 0.25
    assert 0.7 < area.max() < 0.81
    assert 0.49 < ratio.min() < 0.6
    assert 1.5 < ratio.max() < 2.05
    small = area < 0.3  # small parts always fit: nothing is drawn again
    assert abs(np.log(ratio[small]).mean()) < 0.15
    tops = np.array([b.top / max(400 - b.height, 1) for b in drawn])
    assert abs(tops.mean() - 0.5) < 0.05


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("setting", "place", "enhance"),
    [
        ("brightness", 0, ImageEnhance.Brightness),
        ("contrast", 1, ImageEnhance.Contrast),
        ("saturation", 2, ImageEnhance.Color),
    ],
)
def test_colour_jitter_is_pillows(
    channels: int, setting: str, place: int, enhance: Callable[[Image.Image], ImageEnhance.Color]
) -> None:
    chosen = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    step = ColorJitter(**chosen | {setting: 0.6})
    x, numbers = pictures(40, channels), keys(40)
    out = applied(step, x, numbers)
    factors = 0.4 + 1.2 * numbers_of(step, numbers, 4)[:, place]
    for row in range(40):
        close(out[row], enhance(pil(x[row])).enhance(float(factors[row])), 1.6)


def test_hue_is_that_of_hsv() -> None:
    x = pictures(3, size=(4, 4))
    x[0, :, 0, 0] = 0.5  # grey has no hue
    x[0, :, 0, 1] = 0.0
    turns = torch.tensor([0.1, -0.4, 0.0])
    out = turn_hue(x, turns.view(-1, 1, 1))
    for row, col, line in np.ndindex(3, 4, 4):
        h, s, v = colorsys.rgb_to_hsv(*x[row, :, col, line].tolist())
        expected = colorsys.hsv_to_rgb((h + float(turns[row])) % 1.0, s, v)
        np.testing.assert_allclose(out[row, :, col, line].numpy(), expected, atol=2e-6)


def test_grey_and_solarized_are_pillows() -> None:
    x, numbers = pictures(20), keys(20)
    grey = applied(made(name="grayscale", p=1.0), x, numbers)
    negative = applied(made(name="solarize", p=1.0), x, numbers)
    for row in range(20):
        close(grey[row, :1], pil(x[row]).convert("L"), 0.6)
        close(negative[row], ImageOps.solarize(pil(x[row]), 128), 1e-3)
    assert torch.equal(grey[:, 0], grey[:, 2])
    six = pictures(5, 6)
    assert torch.equal(applied(made(name="grayscale", p=1.0), six, keys(5)), six)


def test_blur_is_scipys() -> None:
    step = made(name="blur", p=1.0, sigma=(0.3, 1.5))
    x, numbers = pictures(20, size=(14, 11)), keys(20)
    out = applied(step, x, numbers)
    sigma = 0.3 + 1.2 * numbers_of(step, numbers, 1)[:, 0]
    for row in range(20):
        for plane in range(3):
            expected = ndimage.gaussian_filter(
                x[row, plane].double().numpy(), float(sigma[row]), mode="nearest", radius=5
            )
            np.testing.assert_allclose(out[row, plane].numpy(), expected, atol=1e-5)


def test_erased_rectangles() -> None:
    step = RandomErasing(p=0.8, area=(0.1, 0.3), ratio=(0.5, 2.0), value=9.0)
    x, numbers = pictures(2000, 1, (20, 30)), keys(2000)
    erased = applied(step, x, numbers)[:, 0] == 9.0
    hit = erased.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.8) < 0.04
    tall = erased.any(2).sum(1)[hit].double()
    wide = erased.any(1).sum(1)[hit].double()
    assert torch.equal(erased[hit].flatten(1).sum(1).double(), tall * wide)  # whole rectangles
    share = tall * wide / 600
    assert share.min() > 0.08
    assert share.max() < 0.33
    assert stats.kstest((share.numpy() - 0.1) / 0.2, "uniform").statistic < 0.06
    assert abs((tall / wide).log().mean()) < 0.06
    assert (tall / wide).min() > 0.4
    assert (tall / wide).max() < 2.6
    top = erased.any(2).float().argmax(1)[hit] / (20 - tall)
    assert abs(top.mean() - 0.5) < 0.03
    assert top.min() == 0
    assert top.max() == 1


def test_erasing_with_noise_is_standard_normal() -> None:
    step = RandomErasing(p=1.0, area=(0.2, 0.3), fill="noise")
    x = torch.full((300, 3, 16, 16), 50.0)
    out = applied(step, x, keys(300))
    noise = out[out != 50.0].double().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert applied(RandomErasing(p=1.0), x[:2, :, :1, :1], keys(2)).eq(50.0).all()  # no room


def test_words_number_the_list() -> None:
    assert word(made(name="hflip")) == "0 hflip"
    assert ImageFilter.SMOOTH.filterargs[1] == 13  # what the sharpness test below relies on
