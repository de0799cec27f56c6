"""Inputs for pictures and films of any channel count and size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Dataset
from outmodal.data.transform import BaseInput, Transform, Value, array, as_tensor, write_json

Pixels = NDArray[Any]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode "L"


class ImageInput(BaseInput):
    """A picture [channels, height, width], scaled to 0..1, less `mean`, divided by `std`.

    Attributes:
        size: Height and width; pictures of another size are resized without keeping their aspect.
        channels: Channels of the input. Grey pictures are repeated and colour ones reduced to
            luminance where 1 and 3 meet; other counts must agree with the data.
        mean, std: One value, or one for each channel.
        bits: 8, or 16 for pictures of 16 bits a channel; it only tells the saved preprocessor how
            to scale. transformers cannot resize 16 bits: there the caller has to.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["image"] = "image"
    size: Size = (28, 28)
    channels: int = Field(default=1, gt=0)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    bits: Literal[8, 16] = 8

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, self.channels)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return ImageTransform(self)


def check_moments(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raise ValueError unless both hold one value, or one for each channel, and std is positive."""
    for label, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{label} has {len(values)} values for {channels} channels")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {min(std)}")


class ImageTransform(Transform):
    """Pictures [H, W, C] of uint8 or uint16 to [C, H, W] float32; saved as ViTImageProcessor."""

    def __init__(self, config: ImageInput) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.mean = np.asarray(config.mean, np.float32)
        self.std = np.asarray(config.std, np.float32)

    def __call__(self, value: Value, key: str) -> Tensor:
        pixels = with_channels(array(value, 3), self.settings.channels)
        scaled = scale(resize(pixels, self.settings.size))
        return as_tensor(((scaled - self.mean) / self.std).transpose(2, 0, 1))

    def save(self, folder: Path) -> None:
        super().save(folder)
        s = self.settings
        content = {
            "image_processor_type": "ViTImageProcessor",
            # transformers resizes 8-bit pictures only
            "do_resize": s.bits == 8,
            "size": {"height": s.size[0], "width": s.size[1]},
            "resample": int(Image.Resampling.BILINEAR),
            "do_rescale": True,
            "rescale_factor": 1.0 / (2**s.bits - 1),
            "do_normalize": True,
            "image_mean": list(np.broadcast_to(s.mean, s.channels).tolist()),
            "image_std": list(np.broadcast_to(s.std, s.channels).tolist()),
        }
        write_json(folder / "preprocessor_config.json", content)


class VideoInput(BaseInput):
    """A film [frames, 3, height, width], scaled to 0..1, less `mean`, divided by `std`.

    Attributes:
        frames: Frames taken at even distances from the first to the last; a film with fewer
            repeats some.
        size: Height and width.
        mean, std: One value, or one for each colour.
    """

    kinds: ClassVar[tuple[str, ...]] = ("video",)
    name: Literal["video"] = "video"
    frames: int = Field(default=8, gt=0)
    size: Size = (112, 112)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, 3)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, 3, *self.size)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return VideoTransform(self)


class VideoTransform(Transform):
    """Films [F, H, W, 3] of uint8 to [frames, 3, H, W] float32."""

    def __init__(self, config: VideoInput) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.mean = np.asarray(config.mean, np.float32)
        self.std = np.asarray(config.std, np.float32)

    def __call__(self, value: Value, key: str) -> Tensor:
        film = array(value, 4)
        picked = np.linspace(0, len(film) - 1, self.settings.frames).round().astype(np.int64)
        frames = [scale(resize(with_channels(film[i], 3), self.settings.size)) for i in picked]
        return as_tensor(((np.stack(frames) - self.mean) / self.std).transpose(0, 3, 1, 2))


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
