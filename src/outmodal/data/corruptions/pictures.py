"""Damage to pictures, as in ImageNet-C.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019): ten of its fifteen corruptions at its five severities; the other five
are in `pictures_more`. Its two sets of strengths are here: ImageNet-C's for pictures whose shorter
side has 96 pixels or more, and CIFAR-10-C's for smaller ones. Lengths (radii of blur) are scaled by
the shorter side over 224, or over 32. Pictures are uint8 or uint16 [H, W, C] of any channel count;
they stay what they are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter, zoom
from scipy.signal import fftconvolve

from outmodal.data.manifest import Modality
from outmodal.data.transform import Value

Corruption = Callable[[Modality, Value, int, np.random.Generator], Value]
Pixels = NDArray[Any]
Plane = NDArray[np.float32]

SMALL = 96
"""Shorter side in pixels below which a picture is small."""
_SIDES = (224, 32)
_DIRECT = 15  # side of a kernel above which its spectrum is faster

# large pictures, small pictures; each by severity
GAUSSIAN = ((0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10))
"""Deviation of the noise; white is 1."""
SHOT = ((60, 25, 12, 5, 3), (500, 250, 100, 75, 50))
"""Photons of a white pixel."""
IMPULSE = ((0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07))
"""Share of values that are black or white."""
DEFOCUS = (
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
)
"""Radius of the disk, and deviation of the Gaussian that softens its rim."""
MOTION = (
    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
)
"""Length of the trace, and deviation of the Gaussian by which it fades."""
FOG = (
    ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
)
"""Density, and how much finer structure is fainter."""
BRIGHTNESS = ((0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3))
"""Added to the largest channel."""
CONTRAST = ((0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15))
"""Distance from the mean that remains."""
PIXELATE = ((0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65))
"""Pixels along a side that remain."""
JPEG = ((25, 18, 15, 10, 7), (80, 65, 58, 50, 40))
"""Quality."""


def gaussian_noise(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Add Gaussian noise."""
    spread = np.float32(level(GAUSSIAN, x, severity))
    return x + spread * rng.standard_normal(x.shape, dtype=np.float32)


def shot_noise(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Count photons."""
    photons = level(SHOT, x, severity)
    counted: Plane = (rng.poisson(x * photons) / photons).astype(np.float32)
    return counted


def impulse_noise(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Make values black or white."""
    drawn, white = rng.random(x.shape), rng.random(x.shape) < 0.5
    return np.where(drawn < level(IMPULSE, x, severity), white, x).astype(np.float32)


def defocus_blur(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Blur with a disk."""
    radius, soft = level(DEFOCUS, x, severity)
    return convolved(x, disk(radius * scale_of(x), soft))


def motion_blur(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Blur along a fading trace, at most 45 degrees from the horizontal."""
    length, fade = level(MOTION, x, severity)
    angle = math.radians(rng.uniform(-45, 45))
    return convolved(x, trace(length * scale_of(x), fade * scale_of(x), angle))


def fog(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Lay a cloud over the picture."""
    density, decay = level(FOG, x, severity)
    most = float(x.max())
    cloudy = x + density * cloud(x.shape[:2], decay, rng)[:, :, None]
    found: Plane = (cloudy * most / (most + density)).astype(np.float32)
    return found


def brightness(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Raise the largest channel of every pixel, and the others so that hue and saturation stay."""
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + level(BRIGHTNESS, x, severity), 0, 1)
    scaled = np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised)
    found: Plane = scaled.astype(np.float32)
    return found


def contrast(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Move every channel towards its mean."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    found: Plane = (x - mean) * np.float32(level(CONTRAST, x, severity)) + mean
    return found


def pixelate(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Shrink by averaging, and enlarge without smoothing."""
    height, width = x.shape[:2]
    kept = level(PIXELATE, x, severity)
    small = (max(1, round(width * kept)), max(1, round(height * kept)))
    planes = [
        Image.fromarray(plane)
        .resize(small, Image.Resampling.BOX)
        .resize((width, height), Image.Resampling.NEAREST)
        for plane in np.moveaxis(x, 2, 0).copy()
    ]
    return np.stack([np.asarray(p) for p in planes], axis=2)


def jpeg_compression(x: Plane, severity: int, rng: np.random.Generator) -> Plane:
    """Compress as JPEG: colours together, other channels one by one."""
    quality = int(level(JPEG, x, severity))
    pixels = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    if pixels.shape[2] == 3:
        found = _compressed(pixels, quality)
    else:
        planes = [_compressed(plane, quality) for plane in np.moveaxis(pixels, 2, 0).copy()]
        found = np.stack(planes, axis=2)
    return found.astype(np.float32) / np.float32(255)


def disk(radius: float, soft: float) -> Plane:
    """A disk with a softened rim, of sum 1 and odd size; parts of pixels count as parts."""
    reach, fine = max(1, math.ceil(radius + 2 * soft)), 8
    side = 2 * reach + 1
    at = (np.arange(side * fine) + 0.5) / fine - side / 2
    inside = (at[:, None] ** 2 + at[None, :] ** 2 <= max(radius, 1 / fine) ** 2).astype(np.float32)
    softened = gaussian_filter(inside, soft * fine, mode="constant")
    kernel = softened.reshape(side, fine, side, fine).mean(axis=(1, 3))
    found: Plane = (kernel / kernel.sum()).astype(np.float32)
    return found


def trace(length: float, fade: float, angle: float) -> Plane:
    """A line from the centre at an angle in radians, fading as a Gaussian, of sum 1."""
    reach = max(1, math.ceil(length))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    steps = np.arange(math.ceil(length) + 1) if length >= 0.5 else np.zeros(1)
    weight = np.exp(-np.square(steps) / (2 * max(fade, 1e-3) ** 2))
    row = np.rint(reach + steps * math.sin(angle)).astype(int)
    column = np.rint(reach + steps * math.cos(angle)).astype(int)
    np.add.at(kernel, (row, column), weight)
    found: Plane = kernel / kernel.sum()
    return found


def cloud(shape: tuple[int, ...], decay: float, rng: np.random.Generator) -> Plane:
    """[H, W] in 0..1: noise of all sizes, each half as large `decay` times fainter."""
    side = max(shape)
    total = np.zeros((side, side), np.float32)
    strength, cells = 1.0, 2
    while cells <= 2 * side:
        grid = rng.random((min(cells, side) + 1,) * 2, dtype=np.float32)
        total += strength * zoom(grid, side / len(grid), order=1, grid_mode=True, mode="nearest")
        strength, cells = strength / decay, cells * 2
    low, high = total.min(), total.max()
    found: Plane = ((total - low) / max(high - low, 1e-6))[: shape[0], : shape[1]]
    return found


def convolved(x: Plane, kernel: Plane) -> Plane:
    """Every channel, mirrored at the borders."""
    if len(kernel) <= _DIRECT:
        planes = [convolve(plane, kernel, mode="mirror") for plane in np.moveaxis(x, 2, 0)]
        return np.stack(planes, axis=2)
    reach = len(kernel) // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    found: Plane = fftconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1))
    return found.astype(np.float32)


def _compressed(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def level(levels: Any, x: Plane, severity: int) -> Any:
    """The strength for a picture of this size."""
    return levels[int(min(x.shape[:2]) < SMALL)][severity - 1]


def scale_of(x: Plane) -> float:
    """How long a pixel of the published picture is here."""
    side: int = min(x.shape[:2])
    return side / _SIDES[int(side < SMALL)]


def on_pixels(act: Callable[[Plane, int, np.random.Generator], Plane]) -> Corruption:
    def damaged(spec: Modality, value: Value, severity: int, rng: np.random.Generator) -> Pixels:
        pixels = np.asarray(value)
        white = np.iinfo(pixels.dtype).max
        x = act(pixels.astype(np.float32) / np.float32(white), severity, rng)
        found: Pixels = np.rint(np.clip(x, 0, 1) * white).astype(pixels.dtype)
        return found

    return damaged


CORRUPTIONS: Mapping[str, Corruption] = {
    act.__name__: on_pixels(act)
    for act in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        motion_blur,
        fog,
        brightness,
        contrast,
        pixelate,
        jpeg_compression,
    )
}
