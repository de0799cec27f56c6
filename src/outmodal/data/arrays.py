"""Inputs for arrays: time series of a sensor, and vectors such as a perceptor's features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.augment import Form, Pipeline
from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Dataset
from outmodal.data.picture import check_moments
from outmodal.data.transform import (
    BaseInput,
    Transform,
    Value,
    array,
    as_tensor,
    fit_values,
)
from outmodal.errors import UserError

if TYPE_CHECKING:
    from outmodal.data.draws import Draw

FIT_SERIES = 1024


class SeriesInput(BaseInput):
    """A time series [length, channels], less `mean`, divided by `std`.

    Attributes:
        length: Steps; longer series lose their end, shorter ones are followed by zeros.
        channels: Values at each step.
        mean, std: One value, or one for each channel. None measures each channel on the first
            1,024 training series; what was measured is kept with an export.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    forms: ClassVar[tuple[Form, ...]] = ("steps",)
    name: Literal["series"] = "series"
    length: int = Field(gt=0)
    channels: int = Field(gt=0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both of mean and std, or neither to measure them")
        if self.mean is not None and self.std is not None:
            check_moments(self.mean, self.std, self.channels)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, self.channels)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        if self.mean is not None:
            return SeriesTransform(self)
        if dataset is None:
            raise UserError(
                f"input of '{modality}': mean and std are not set, and there is no data set to "
                "measure them on: set both, or give the data set"
            )
        mean, std = measure_series(dataset, modality, self.channels)
        return SeriesTransform(self.model_copy(update={"mean": mean, "std": std}))


def measure_series(
    dataset: Dataset, modality: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over the first training series.

    Raises:
        UserError: The data set has no series of so many channels.
    """
    arrays = [v for _, v in fit_values(dataset, modality, FIT_SERIES) if not isinstance(v, str)]
    fitting = [a for a in arrays if a.ndim == 2 and a.shape[1] == channels]
    if not fitting:
        raise UserError(
            f"no series of '{modality}' in data set '{dataset.manifest.name}' has {channels} "
            "channels: set the input's channels to the data's"
        )
    steps = np.concatenate(fitting).astype(np.float64)
    std = np.maximum(steps.std(axis=0), 1e-6)
    return tuple(steps.mean(axis=0).tolist()), tuple(std.tolist())


class SeriesTransform(Transform):
    """Series [T, C] to [length, C] float32."""

    def __init__(self, config: SeriesInput) -> None:
        super().__init__(config, config.shape)
        self.pipeline = Pipeline(config.augment, config.strong)
        self.mean = np.asarray(config.mean, np.float32)
        self.std = np.asarray(config.std, np.float32)

    def __call__(self, value: Value, key: str) -> Tensor:
        series = array(value, 2)
        if series.shape[1] != self.shape[1]:
            raise DecodeError(f"expected {self.shape[1]} channels, got {series.shape[1]}")
        normal = (series[: self.shape[0]].astype(np.float32) - self.mean) / self.std
        out: NDArray[np.float32] = np.zeros(self.shape, np.float32)
        out[: len(normal)] = normal
        return as_tensor(out)

    def blank(self, raw: bool = False) -> Tensor:
        return self(np.zeros(self.shape, np.float32), "") if raw else super().blank()

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        return self.pipeline.batch(x, keys, draw)


class VectorInput(BaseInput):
    """A vector [dim] as it is, or at unit length.

    Attributes:
        dim: Size of the vector.
        normalize: Divide by the length (at least 1e-6).
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector",)
    forms: ClassVar[tuple[Form, ...]] = ("features",)
    name: Literal["vector"] = "vector"
    dim: int = Field(gt=0)
    normalize: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return VectorTransform(self)


class VectorTransform(Transform):
    """Vectors to [dim] float32."""

    def __init__(self, config: VectorInput) -> None:
        super().__init__(config, config.shape)
        self.pipeline = Pipeline(config.augment, config.strong)
        self.normalize = config.normalize

    def __call__(self, value: Value, key: str) -> Tensor:
        vector = array(value, 1).astype(np.float32)
        if vector.shape != self.shape:
            raise DecodeError(f"expected a vector of {self.shape[0]}, got {vector.shape[0]}")
        if self.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-6)
        return as_tensor(vector)

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        changed = self.pipeline.batch(x, keys, draw)
        if changed is x or not self.normalize:
            return changed
        return torch.nn.functional.normalize(changed, dim=1, eps=1e-6)
