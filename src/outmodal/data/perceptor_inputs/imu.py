"""Recordings of inertial sensors."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Dataset
from outmodal.data.picture import check_moments
from outmodal.data.transform import BaseInput, Transform, Value, array
from outmodal.errors import UserError


class ImuInput(BaseInput):
    """A recording [channels, length]: three axes of acceleration, then three of rotation.

    A series of another length is an error: only who recorded it knows how to cut or resample it.

    Attributes:
        length: Steps; ImageBind reads 5 s at 400 Hz.
        channels: Values at each step.
        mean, std: What to subtract and to divide by; one value, or one a channel. ImageBind's
            units and constants are not published, so nothing is changed unless they are set.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    name: Literal["imu"] = "imu"
    length: int = Field(default=2000, gt=0)
    channels: int = Field(default=6, gt=0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, self.channels)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.length)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        spec = self.spec(dataset, modality)
        wanted = (self.length, self.channels)
        stored = spec.shape if spec is not None and spec.shape is not None else wanted
        if len(stored) != 2 or any(n not in (-1, w) for n, w in zip(stored, wanted, strict=True)):
            raise UserError(
                f"modality '{modality}' has series of shape {list(stored)}, and the input reads "
                f"[{self.length} steps, {self.channels} channels]: cut or resample the recordings"
            )
        return Imu(self)


class Imu(Transform):
    """Series [length, channels] to [channels, length] float32."""

    def __init__(self, config: ImuInput) -> None:
        super().__init__(config, config.shape)
        self.mean = torch.tensor(config.mean)[:, None]
        self.std = torch.tensor(config.std)[:, None]

    def __call__(self, value: Value, key: str) -> Tensor:
        series = array(value, 2)
        channels, length = self.shape
        if series.shape != (length, channels):
            turned = "; it is turned: store time first" if series.shape == self.shape else ""
            raise DecodeError(
                f"expected [{length} steps, {channels} channels], got {list(series.shape)}{turned}"
            )
        steps = torch.from_numpy(np.ascontiguousarray(series.T, dtype=np.float32))
        return (steps - self.mean) / self.std
