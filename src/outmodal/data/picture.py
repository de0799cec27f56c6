"""Inputs for pictures and films of any channel count and size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.augment import Form, Pipeline
from outmodal.data.crop import FILTERS, Box, Interpolation, centre_box, read_crop, whole_box
from outmodal.data.decode import DecodeError, check_image, check_pixels, decode
from outmodal.data.jpeg import decode_jpeg, read_header
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.transform import (
    BaseInput,
    Transform,
    Value,
    array,
    fit_values,
    write_json,
)

if TYPE_CHECKING:
    from outmodal.data.draws import Draw

Pixels = NDArray[Any]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
NO_KEYS = torch.zeros(1, dtype=torch.int64)
_EIGHT_BITS = ("jpg", "jpeg", "webp", "bmp", "gif")
_SPARE = 2  # how much larger than needed a drafted picture stays: the filter then hides the rest
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode "L"


class ImageInput(BaseInput):
    """A picture [channels, height, width], scaled to 0..1, less `mean`, divided by `std`.

    Attributes:
        size: Height and width.
        channels: Channels of the input. Grey pictures are repeated and colour ones reduced to
            luminance where 1 and 3 meet; other counts must agree with the data.
        mean, std: One value, or one for each channel.
        bits: 8, or 16 for pictures of 16 bits a channel, which a data set's first picture
            decides as well. The saved preprocessor needs it to know how to scale; transformers
            cannot resize 16 bits: there the caller has to.
        crop: "none" resizes the whole picture without keeping its aspect; "center" takes the
            largest part in the middle that has the aspect of `size`.
        crop_fraction: Share of that part's height and width: 0.875 is what many ImageNet models
            are measured with (a shorter side of 256 for 224).
        interpolation: Antialiased filter. Bilinear agrees with Pillow's within one grey level.
        draft: Whether JPEGs are decoded at a half, a quarter or an eighth of their size where
            that leaves at least twice what is needed: large ones several times faster, for a
            few grey levels of difference.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    forms: ClassVar[tuple[Form, ...]] = ("pixels",)
    name: Literal["image"] = "image"
    size: Size = (28, 28)
    channels: int = Field(default=1, gt=0)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    bits: Literal[8, 16] = 8
    crop: Literal["none", "center"] = "none"
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    interpolation: Interpolation = "bilinear"
    draft: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, self.channels)
        if self.crop == "none" and self.crop_fraction != 1:
            raise ValueError("crop_fraction needs crop: center")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        spec = self.spec(dataset, modality)
        if dataset is None or spec is None or self.bits == 16 or spec.ext in _EIGHT_BITS:
            return ImageTransform(self)
        first = fit_values(dataset, modality, 1, shards=1)
        wide = bool(first) and getattr(first[0][1], "dtype", None) == np.uint16
        return ImageTransform(self.model_copy(update={"bits": 16}) if wide else self)


def check_moments(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raise ValueError unless both hold one value, or one for each channel, and std is positive."""
    for label, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{label} has {len(values)} values for {channels} channels")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {min(std)}")


class ImageTransform(Transform):
    """Pictures [H, W, C] of uint8 or uint16 to [C, H, W] float32; saved for transformers.

    The compact form is [H, W, C] of uint8, of 0..65535 in int32 where the input has 16 bits.
    """

    def __init__(self, config: ImageInput) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.mean = torch.tensor(config.mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(config.std, dtype=torch.float32).view(-1, 1, 1)
        self.pipeline = Pipeline(config.augment, config.strong)
        self.random = self.pipeline.random
        self.unit = float(np.float32(1.0 / (2**config.bits - 1)))

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        s = self.settings
        return (*s.size, s.channels), torch.uint8 if s.bits == 8 else torch.int32

    def __call__(self, value: Value, key: str) -> Tensor:
        return self.finish(self.compact(value, key)[None], NO_KEYS)[0]

    def box(self, height: int, width: int, key: str, draw: Draw | None) -> Box:
        """Return the part of a picture of this size that is taken: a drawn one, if any is."""
        drawn = self.pipeline.box(height, width, key, draw)
        if drawn is not None:
            return drawn
        s = self.settings
        if s.crop == "center":
            return centre_box(height, width, s.size, s.crop_fraction)
        return whole_box(height, width)

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        pixels = array(value, 3)
        box = self.box(pixels.shape[0], pixels.shape[1], key, draw)
        return self._taken(pixels, box, key, draw)

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        """See Transform.from_bytes. The part to take is known before a JPEG is decoded."""
        header = None if spec.ext == "npy" else read_header(data)
        if header is None:
            return self.compact(decode(spec, data), key, draw)
        size = (header.height, header.width)
        check_pixels(*size)
        box = self.box(*size, key, draw)
        pixels = decode_jpeg(data, header, self._enough(size, box))
        if pixels is None:
            return self.compact(decode(spec, data), key, draw)
        if spec.channels == 3:
            pixels = with_channels(pixels, 3)
        check_image(spec, *size, pixels.shape[2])
        return self._taken(pixels, box.scaled(size, pixels.shape[:2]), key, draw)

    def _enough(self, size: tuple[int, int], box: Box) -> tuple[int, int]:
        """Return the height and width to decode at least; zeros for all."""
        s = self.settings
        if not s.draft:
            return (0, 0)
        return (
            math.ceil(_SPARE * s.size[0] * size[0] / box.height),
            math.ceil(_SPARE * s.size[1] * size[1] / box.width),
        )

    def _taken(self, pixels: Pixels, box: Box, key: str, draw: Draw | None) -> Tensor:
        """Cut out and resize: the compact form."""
        s = self.settings
        if pixels.dtype not in (np.uint8, np.uint16):
            raise DecodeError(f"expected pixels of uint8 or uint16, got {pixels.dtype}")
        if pixels.shape[2] != 1:
            pixels = with_channels(pixels, s.channels)  # before they are resized
        elif s.channels not in (1, 3):
            raise DecodeError(f"expected {s.channels} channels, got 1")
        x = read_crop(pixels, box, s.size, s.interpolation)
        x = self._ranged(x, pixels.dtype).expand(self.stored[0]).contiguous()
        if draw is None or not self.random:
            return x
        return torch.from_numpy(np.ascontiguousarray(self.pipeline.sample(x.numpy(), key, draw)))

    def _ranged(self, x: Tensor, dtype: np.dtype[Any]) -> Tensor:
        """Bring a picture of the other width into this input's range."""
        if self.settings.bits == 16:
            return x.to(torch.int32) * 257 if dtype == np.uint8 else x
        return x if dtype == np.uint8 else (x / 257).round().to(torch.uint8)

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        """Scale to 0..1, augment, normalise, and erase: see Transform.finish."""
        planes = x.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        scaled = self.pipeline.batch(planes.mul_(self.unit), keys, draw)
        mean, std = (m.to(x.device, non_blocking=True) for m in (self.mean, self.std))
        return self.pipeline.last(scaled.sub(mean).div_(std), keys, draw)

    def save(self, folder: Path) -> None:
        super().save(folder)
        s = self.settings
        content = {
            "image_processor_type": "ViTImageProcessor",
            # transformers resizes 8-bit pictures only
            "do_resize": s.bits == 8,
            "size": {"height": s.size[0], "width": s.size[1]},
            "resample": int(FILTERS[s.interpolation]),
            "do_rescale": True,
            "rescale_factor": 1.0 / (2**s.bits - 1),
            "do_normalize": True,
            "image_mean": list(np.broadcast_to(s.mean, s.channels).tolist()),
            "image_std": list(np.broadcast_to(s.std, s.channels).tolist()),
        }
        if s.crop == "center" and s.bits == 8:
            content |= _centre(s)
        write_json(folder / "preprocessor_config.json", content)


def _centre(s: ImageInput) -> dict[str, Any]:
    """What transformers' processor for CLIP does: the shorter side, then the middle."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": round(min(s.size) / s.crop_fraction)},
        "do_center_crop": True,
        "crop_size": {"height": s.size[0], "width": s.size[1]},
        "do_convert_rgb": s.channels == 3,
    }


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return [H, W, channels] of the same type, or raise DecodeError where counts do not meet."""
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if have == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if have == 3 and channels == 1:
        grey: Pixels = np.rint(pixels @ LUMINANCE).astype(pixels.dtype)
        return grey[:, :, None]
    raise DecodeError(f"expected {channels} channels, got {have}")


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize [H, W, C] with Pillow's antialiased bilinear filter; untouched at the right size."""
    if pixels.shape[:2] == size:
        return pixels
    target = (size[1], size[0])
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
        resized = np.asarray(Image.fromarray(flat).resize(target, Image.Resampling.BILINEAR))
        return resized.reshape(*size, -1)
    planes = [
        np.asarray(Image.fromarray(plane).resize(target, Image.Resampling.BILINEAR))
        for plane in pixels.astype(np.float32).transpose(2, 0, 1)
    ]
    rounded: Pixels = np.rint(np.stack(planes, axis=2)).astype(pixels.dtype)
    return rounded


def scale(pixels: Pixels) -> NDArray[np.float32]:
    """Scale integers to 0..1 by the largest value of their type."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DecodeError(f"expected pixels of uint8 or uint16, got {pixels.dtype}")
    return pixels.astype(np.float32) * np.float32(1.0 / np.iinfo(pixels.dtype).max)
