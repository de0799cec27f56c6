"""What every input is: a configuration that builds a transform from a decoded value to a tensor."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.base import Config
from outmodal.data.decode import DecodeError, decode
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.shards import read_shard
from outmodal.errors import UserError

Value = NDArray[Any] | str
"""What a decoder returns for one member of a sample."""


class Transform(ABC):
    """A pure function of a decoded value and its sample's key. Picklable for loader workers.

    Attributes:
        config: The input configuration with everything resolved that `build` had to look up, so
            that `config.build(None, modality, export_folder)` gives the same transform again.
        shape: Shape of the tensor, without the batch.
        dtype: float32, or int64 for tokens.
    """

    def __init__(
        self, config: BaseInput, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        self.config = config
        self.shape = shape
        self.dtype = dtype

    @abstractmethod
    def __call__(self, value: Value, key: str) -> Tensor:
        """Return the model's input. Raises DecodeError where the value does not fit."""

    def from_bytes(self, spec: Modality, data: bytes, key: str) -> Tensor:
        """Decode a member and return the model's input. Raises DecodeError.

        Transforms that need less of a file than `decode` gives, or more, do it their own way.
        """
        return self(decode(spec, data), key)

    def zeros(self) -> Tensor:
        """Return the input that stands for an absent modality."""
        return torch.zeros(self.shape, dtype=self.dtype)

    def save(self, folder: Path) -> None:
        """Write the preprocessor files that transformers loads, where it has such a class.

        Here it only makes the folder; inputs with a preprocessor add its files.
        """
        folder.mkdir(parents=True, exist_ok=True)


class BaseInput(Config):
    """Base of the input configurations. `kinds` are the modality kinds that it reads."""

    kinds: ClassVar[tuple[str, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input tensor, without the batch."""
        raise NotImplementedError

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        """Make the transform for `modality` of `dataset`.

        Args:
            dataset: Where noise pools, vocabularies and statistics come from; None when the
                configuration was resolved before (an exported encoder away from its data).
            modality: Name of the modality in the data set.
            folder: Run or export folder, for files that a transform needs beside its config.
        """
        raise NotImplementedError

    def spec(self, dataset: Dataset | None, modality: str) -> Modality | None:
        """Return the modality's record after checking that this input reads its kind."""
        if dataset is None:
            return None
        spec = dataset.modality(modality)
        if spec.kind not in self.kinds:
            raise UserError(
                f"input '{getattr(self, 'name', '?')}' reads {' or '.join(self.kinds)}, but "
                f"modality '{modality}' of data set '{dataset.manifest.name}' is {spec.kind}: "
                f"choose an input for {spec.kind}"
            )
        return spec


def array(value: Value, ndim: int) -> NDArray[Any]:
    """Return `value` as an array of `ndim` axes, or raise DecodeError."""
    if isinstance(value, str) or value.ndim != ndim or value.size == 0:
        got = "text" if isinstance(value, str) else f"shape {value.shape}"
        raise DecodeError(f"expected a non-empty array of {ndim} axes, got {got}")
    return value


def fit_values(
    dataset: Dataset, modality: str, limit: int, shards: int | None = None
) -> list[tuple[str, Value]]:
    """Decode the first `limit` values of a modality for fitting, in stored order.

    Reads the "train" split, or the first split of a data set that has no "train". Samples without
    the modality, and those that do not decode, are passed over: the stream reports them.
    """
    splits = dataset.manifest.splits
    split = "train" if "train" in splits else next(iter(splits))
    spec = dataset.modality(modality)
    member = f"{modality}.{spec.ext}"
    values: list[tuple[str, Value]] = []
    for info in dataset.split(split).shards[:shards]:
        for _, key, members in read_shard(dataset.shard_path(info)):
            if member not in members:
                continue
            try:
                values.append((key, decode(spec, members[member])))
            except DecodeError:
                continue
            if len(values) == limit:
                return values
    return values


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one of transformers' JSON files with stable bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def as_tensor(values: NDArray[Any]) -> Tensor:
    """Return a contiguous float32 tensor that owns its memory or shares the given array's."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
