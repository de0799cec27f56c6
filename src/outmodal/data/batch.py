"""The two records that cross the border between data and training: what to stream, and a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class StreamSpec:
    """One stream of batches that a method asks for.

    Attributes:
        name: Identifies the stream in a step's batches, and salts its order, so that two
            streams over the same split are ordered independently of each other.
        split: Split of the data set, "train" for instance.
        modalities: Modalities to decode; a sample that lacks one gets zeros and present=False.
        batch: Samples per step over all ranks together.
        select: Sorted global indices within the split to draw from; None is the whole split.
    """

    name: str
    split: str
    modalities: tuple[str, ...]
    batch: int
    select: NDArray[np.int64] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one global batch.

    Attributes:
        index: [B] int64, position of the sample in its split (the same in every run).
        label: [B] int64 class, -1 where the sample has none.
        x: modality -> [B, ...] input tensor.
        present: modality -> [B] bool, False where the sample lacks the modality.
        valid: [B] bool, False on padding rows of an evaluation pass.
        target: [B, ...] float regression target, or None.
    """

    index: Tensor
    label: Tensor
    x: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    valid: Tensor
    target: Tensor | None = None

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """Move to `device`; floating-point inputs become `dtype` where it is given."""

        def move(t: Tensor) -> Tensor:
            moved = t.to(device, non_blocking=True)
            return moved.to(dtype) if dtype is not None and moved.is_floating_point() else moved

        return replace(
            self,
            index=self.index.to(device),
            label=self.label.to(device),
            x={m: move(t) for m, t in self.x.items()},
            present={m: t.to(device) for m, t in self.present.items()},
            valid=self.valid.to(device),
            target=None if self.target is None else self.target.to(device),
        )

    @staticmethod
    def concat(parts: Sequence[Batch]) -> Batch:
        """Join rows in the given order. All parts must hold the same modalities."""
        first = parts[0]
        if len(parts) == 1:
            return first

        def join(pick: Any) -> Tensor:
            return torch.cat([pick(p) for p in parts])

        return Batch(
            index=join(lambda p: p.index),
            label=join(lambda p: p.label),
            x={m: join(lambda p, m=m: p.x[m]) for m in first.x},
            present={m: join(lambda p, m=m: p.present[m]) for m in first.present},
            valid=join(lambda p: p.valid),
            target=None if first.target is None else join(lambda p: p.target),
        )
