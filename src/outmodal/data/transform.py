"""What every input is: a configuration that builds a transform from a decoded value to a tensor."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from outmodal.base import Config
from outmodal.data.augment import AugmentConfig, Form, misfit
from outmodal.data.decode import DecodeError, decode
from outmodal.data.manifest import Dataset, Modality, ShardInfo
from outmodal.data.shards import read_shard
from outmodal.errors import UserError

if TYPE_CHECKING:
    from outmodal.data.draws import Draw

Value = NDArray[Any] | str
"""What a decoder returns for one member of a sample."""


class Transform(ABC):
    """From a decoded value and its sample's key to the model's input, in two stages.

    The first stage runs sample by sample where the data are read, and gives the compact form:
    what travels through caches, loader workers and the copy to the device (uint8 for pictures).
    The second, `finish`, turns a batch of it into the input on the device. Both are pure
    functions of value, key and draw. Picklable for loader workers.

    Attributes:
        config: The input configuration with everything resolved that `build` had to look up, so
            that `config.build(None, modality, export_folder)` gives the same transform again.
        shape: Shape of the input, without the batch.
        dtype: Type of the input: float32, or int64 for tokens.
        random: Whether the first stage draws: then a draw's compact form is good for one epoch
            only, and must not be cached (the decoded value may be).
    """

    random: bool = False

    def __init__(
        self, config: BaseInput, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        self.config = config
        self.shape = shape
        self.dtype = dtype

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of the compact form, without the batch."""
        return self.shape, self.dtype

    @abstractmethod
    def __call__(self, value: Value, key: str) -> Tensor:
        """Return the model's input of one value, without augmentation.

        Raises DecodeError where the value does not fit.
        """

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        """Return the compact form, augmented as `draw` says. Raises DecodeError as a call does."""
        return self(value, key)

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        """Decode a member and return its compact form. Raises DecodeError.

        Transforms that need less of a file than `decode` gives do it their own way.
        """
        return self.compact(self.decode(spec, data), key, draw)

    def decode(self, spec: Modality, data: bytes) -> Value:
        """Decode a member to what `compact` takes. Raises DecodeError."""
        return decode(spec, data)

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        """Turn compact forms [B, *stored] into inputs [B, *shape], on the device of `x`.

        Args:
            x: The batch.
            keys: [B] int64, `key_number` of the samples' keys; they matter to draws only.
            draw: Of the epoch; None where nothing is augmented.
        """
        return x

    def read(self, spec: Modality, data: bytes, key: str) -> Tensor:
        """Decode a member and return the model's input, without augmentation.

        Raises DecodeError.
        """
        compact = self.from_bytes(spec, data, key)
        return self.finish(compact[None], torch.zeros(1, dtype=torch.int64))[0]

    def zeros(self) -> Tensor:
        """Return the compact form that stands for an absent modality."""
        shape, dtype = self.stored
        return torch.zeros(shape, dtype=dtype)

    def blank(self, raw: bool = False) -> Tensor:
        """Return the input [*shape] that holds no information, as a silent microphone gives it.

        Args:
            raw: What is made of zeros before they are normalised, in place of zeros in the tensor
                that the encoder receives. Text is a single blank in both cases.
        """
        if not raw:
            return torch.zeros(self.shape, dtype=self.dtype)
        return self.finish(self.zeros()[None], torch.zeros(1, dtype=torch.int64))[0]

    def save(self, folder: Path) -> None:
        """Write the preprocessor files that transformers loads, where it has such a class.

        Here it only makes the folder; inputs with a preprocessor add its files.
        """
        folder.mkdir(parents=True, exist_ok=True)


class BaseInput(Config):
    """Base of the input configurations.

    Attributes:
        kinds: The modality kinds that it reads.
        forms: What its transform lets augmentations change; none where it takes no augmentation.
        augment: What is drawn anew for every sample and epoch of training, in this order within
            each stage. Evaluation, embedding and exports see values without it.
        strong: The same for the strongly augmented views of methods that ask for them.
    """

    kinds: ClassVar[tuple[str, ...]]
    forms: ClassVar[tuple[Form, ...]] = ()
    augment: tuple[AugmentConfig, ...] = ()
    strong: tuple[AugmentConfig, ...] = ()

    @model_validator(mode="after")
    def _augmentations_fit(self) -> Self:
        for step in (*self.augment, *self.strong):
            problem = misfit(step, getattr(self, "name", "?"), self.kinds, self.forms)
            if problem:
                raise ValueError(problem)
        return self

    def plain(self) -> Self:
        """Return this configuration without augmentations, for encoders away from training."""
        return self.model_copy(update={"augment": (), "strong": ()})

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
    """Decode the first `limit` values of a modality for fitting, in stored order (of a mixture:
    as many of each source).

    Reads the "train" split, or the first split of a data set that has no "train". Samples without
    the modality, and those that do not decode, are passed over: the stream reports them.
    """
    splits = dataset.manifest.splits
    split = "train" if "train" in splits else next(iter(splits))
    dataset.modality(modality)
    values: list[tuple[str, Value]] = []
    groups = dataset.groups(split)
    for number, group in enumerate(groups, 1):
        share = limit * number // len(groups) - len(values)
        if share > 0:
            values += _values_of(dataset, modality, share, group[:shards])
    return values


def _values_of(
    dataset: Dataset, modality: str, limit: int, shards: Sequence[ShardInfo]
) -> list[tuple[str, Value]]:
    values: list[tuple[str, Value]] = []
    for info in shards:
        spec = dataset.modality_in(info, modality)
        if spec is None:
            continue
        member = f"{modality}.{spec.ext}"
        for _, key, members in read_shard(dataset.shard(info)):
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
