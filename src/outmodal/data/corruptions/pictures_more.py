"""The other five corruptions of ImageNet-C: glass, zoom, snow, frost, elastic.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019), with its strengths (see `pictures`) and these differences. Frost is
drawn, where the authors lay photographs of frost over the picture. Pixels behind glass are moved
all at once, where the authors swap neighbours one after another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from outmodal.data.corruptions.pictures import (
    Corruption,
    Plane,
    cloud,
    convolved,
    level,
    on_pixels,
    scale_of,
    trace,
)

# large pictures, small pictures; each by severity
GLASS = (
    ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
)
"""Deviation of the blur before and after, longest way of a pixel, how often pixels are moved."""
ZOOM = (
    ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
)
"""Magnifications below the first number are averaged, in steps of the second."""
SNOW = (
    (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
)
"""Of the flakes mean and deviation, magnification, threshold, length and fading of their traces;
share of the picture that keeps its colours."""
FROST = (
    ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
)
"""Weights of the picture and of the frost."""
ELASTIC = (
    ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
)
"""Strength and smoothness of the displacements, and of the three corners' of an affine map; in
parts of the shorter side."""

_CRYSTALS = 1.6  # how much fainter finer frost is
_TINT = (0.85, 0.95, 1.0)  # of frost in colour


def glass_blur(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Let every pixel show one nearby, between two blurs."""
    soft, reach, times = level(GLASS, x, severity)
    soft, reach = soft * scale_of(x), max(1, round(reach * scale_of(x)))
    found = _blurred(x, soft)
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    for _ in range(times):
        down, right = rng.integers(-reach, reach + 1, (2, height, width))
        there = np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)
        found = found[there]
    return _blurred(found, soft)


def zoom_blur(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Average the picture with larger ones of its middle."""
    most, step = level(ZOOM, x, severity)
    zooms = np.arange(1, most, step)
    total = x + sum(_magnified(x, float(zoom)) for zoom in zooms)
    found: Plane = (total / (len(zooms) + 1)).astype(np.float32)
    return found


def snow(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Whiten the picture, and let flakes fall over it."""
    mean, deviation, zoom, threshold, length, fade, kept = level(SNOW, x, severity)
    drawn = rng.standard_normal(x.shape[:2], dtype=np.float32)
    flakes = _magnified((mean + deviation * drawn)[:, :, None], zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1).astype(np.float32)
    angle = math.radians(rng.uniform(-135, -45))
    kernel = trace(length * scale_of(x), fade * scale_of(x), angle)
    fallen = np.clip(convolved(flakes, kernel), 0, 1)
    white = np.maximum(x, x.mean(axis=2, keepdims=True) * 1.5 + 0.5)
    found: Plane = kept * x + np.float32(1 - kept) * white + fallen + fallen[::-1, ::-1]
    return found


def frost(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Lay drawn crystals over the picture: the ridges of noise of all sizes, in patches."""
    own, ice = level(FROST, x, severity)
    ridges = 1 - np.abs(2 * cloud(x.shape[:2], _CRYSTALS, rng) - 1)
    patches = cloud(x.shape[:2], 2.0, rng)
    layer = np.clip(ridges**4 * (0.4 + patches), 0, 1)[:, :, None]
    tint = np.array(_TINT if x.shape[2] == 3 else [np.mean(_TINT)], np.float32)
    found: Plane = (own * x + ice * layer * tint).astype(np.float32)
    return found


def elastic_transform(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Skew the picture by three corners, and pull it about locally."""
    side = min(x.shape[:2])
    strength, smooth, skew = (value * side for value in level(ELASTIC, x, severity))
    moved = rng.uniform(-skew, skew, (3, 2))
    drawn = rng.uniform(-1, 1, (2, *x.shape[:2]))
    pulls = [gaussian_filter(d, smooth, mode="reflect", truncate=3) * strength for d in drawn]
    rows, columns = _skewed(x.shape[:2], moved)
    places = np.stack([rows + pulls[0], columns + pulls[1]])
    return _at(x, places, "reflect")


def _skewed(shape: tuple[int, ...], moved: NDArray[np.float64]) -> tuple[Plane, Plane]:
    """Where each pixel of an affinely mapped picture comes from; three points move by `moved`."""
    centre, reach = np.array(shape) / 2, min(shape) / 3
    corners = centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    ahead = np.column_stack([corners + moved, np.ones(3)])
    matrix = np.linalg.lstsq(ahead, corners, rcond=None)[0]  # from the new place to the old
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    back = np.stack([rows, columns, np.ones(shape)], axis=-1) @ matrix
    return back[..., 0], back[..., 1]


def _magnified(x: Plane, zoom: float) -> Plane:
    """The middle of a picture at a magnification of at least 1, at the picture's size."""
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    middle = (height - 1) / 2, (width - 1) / 2
    places = np.stack(
        [(rows - middle[0]) / zoom + middle[0], (columns - middle[1]) / zoom + middle[1]]
    )
    return _at(x, places, "nearest")


def _at(x: Plane, places: NDArray[np.float64], mode: str) -> Plane:
    """The picture's values at fractional places [2, H, W], channel by channel."""
    planes = [map_coordinates(plane, places, order=1, mode=mode) for plane in np.moveaxis(x, 2, 0)]
    return np.stack(planes, axis=2).astype(np.float32)


def _blurred(x: Plane, deviation: float) -> Plane:
    found: Plane = gaussian_filter(x, (deviation, deviation, 0))
    return found


CORRUPTIONS: Mapping[str, Corruption] = {
    act.__name__: on_pixels(act) for act in (glass_blur, zoom_blur, snow, frost, elastic_transform)
}
