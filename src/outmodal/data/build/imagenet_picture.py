"""One picture of a source as the shards hold it, and a count of what had to be done for that.

Among ImageNet's files, all called .JPEG, are a PNG and about twenty JPEGs of four inks (CMYK). A
picture that is grey or RGB already, and small enough, is copied byte for byte; every picture is
decoded whole once, so that what is cut off is found here and not in training.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from outmodal.data.decode import DecodeError, decode, open_image
from outmodal.data.manifest import Modality
from outmodal.data.transcode import encode_jpeg, shrunk

Ext = Literal["jpg", "png"]

_FORMATS = {"jpg": ("JPEG", "MPO"), "png": ("PNG",)}
_PLAIN = ("L", "RGB")
_COLOUR = Modality(kind="image", ext="jpg", channels=3)
_ANY = Modality(kind="image", ext="jpg")


@dataclass(frozen=True)
class Recipe:
    """How pictures are stored.

    Attributes:
        ext: As JPEG, or without loss as PNG.
        side: Longest shorter side in pixels; 0 leaves sizes as they are.
        quality: Of JPEGs that have to be written, 1 to 100.
    """

    ext: Ext = "jpg"
    side: int = 0
    quality: int = 90


def standard(data: bytes, recipe: Recipe) -> tuple[bytes, str]:
    """Return a picture as the shards hold it, grey or RGB of 8 bits, and what was done for it.

    What was done is "copied", "resized", or a conversion: "from CMYK", "from PNG" or another
    format, "from mode P" or another way to store pixels. Transparency, orientation and colour
    profile, which decoders here do not apply, are not kept where something is done.

    Raises:
        DecodeError: The picture is cut off, or none.
    """
    if not data:
        raise DecodeError("empty file")
    with open_image(data) as image:
        form, mode = image.format or "", image.mode
        small = not recipe.side or min(image.size) <= recipe.side
    plain = form in _FORMATS[recipe.ext] and mode in _PLAIN
    pixels = decode(_ANY if mode == "L" else _COLOUR, data)
    assert not isinstance(pixels, str)
    if plain and small:
        return data, "copied"
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    side = recipe.side or max(pixels.shape)
    made = encode_jpeg(pixels, side, recipe.quality) if recipe.ext == "jpg" else _png(pixels, side)
    return made, "resized" if plain else _conversion(form, mode, recipe.ext)


def _conversion(form: str, mode: str, ext: Ext) -> str:
    if form not in _FORMATS[ext]:
        return f"from {form}"
    return "from CMYK" if mode == "CMYK" else f"from mode {mode}"


def _png(pixels: Any, side: int) -> bytes:
    file = io.BytesIO()
    shrunk(pixels, side).save(file, "PNG")
    return file.getvalue()


@dataclass
class Tally:
    """What became of the pictures of a shard, or of all.

    Attributes:
        done: What was done -> number of pictures.
        skipped: (file, reason) of those that cannot be read.
        captions: Samples with a caption.
    """

    done: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    captions: int = 0

    def add(self, data: bytes, file: str, recipe: Recipe) -> bytes | None:
        """Return the picture as it is stored, None if it cannot be read; count either."""
        try:
            made, what = standard(data, recipe)
        except DecodeError as error:
            self.skipped.append((file, error.reason))
            return None
        self.done[what] += 1
        return made

    def to_json(self) -> dict[str, Any]:
        """Return what `joined` reads."""
        skipped = [list(pair) for pair in self.skipped]
        return {"done": dict(self.done), "skipped": skipped, "captions": self.captions}


def joined(parts: Sequence[Mapping[str, Any]]) -> Tally:
    """Add up what shards have counted, in their order."""
    whole = Tally()
    for part in parts:
        whole.done.update({str(name): int(count) for name, count in part["done"].items()})
        whole.skipped += [(str(file), str(reason)) for file, reason in part["skipped"]]
        whole.captions += int(part["captions"])
    return whole
