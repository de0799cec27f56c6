"""Pictures for tests, smooth enough to survive JPEG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def smooth(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Return uint8 [height, width, channels] without sharp edges."""
    rng = np.random.default_rng(seed)
    planes = [
        Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8)).resize((width, height))
        for _ in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def as_file(pixels: NDArray[np.uint8], kind: str = "JPEG", mode: str = "", **options: Any) -> bytes:
    """Encode with Pillow, after converting to `mode`."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()
