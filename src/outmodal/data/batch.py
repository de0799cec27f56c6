"""What a step reads: stream specifications in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.mixing import Mixed, Mixer, Mixing

Finish = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *stored], keys [B] int64) -> [B, *shape]: the part of an input that is left for the
device (see Transform.finish)."""

Policy = Literal["augment", "strong", "none"]


@dataclass(frozen=True)
class View:
    """One more look at a modality, drawn independently of the others.

    Attributes:
        name: Its name in a batch's `x` and `present`.
        modality: Of what.
        policy: Which augmentation draws it: an input's `augment`, its `strong`, or "none".
    """

    name: str
    modality: str
    policy: Policy = "augment"


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
        views: More looks at modalities; a modality need not be among `modalities` for it.
        mixing: What of neighbours is blended in epochs, and how; None is nothing.
    """

    name: str
    split: str
    modalities: tuple[str, ...]
    batch: int
    select: NDArray[np.int64] | None = field(default=None, compare=False)
    views: tuple[View, ...] = ()
    mixing: Mixing | None = None


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one global batch.

    As a loader gives it, `x` holds what is cheap to move (uint8 pictures, for instance), and
    `later` what makes the model's input of it. `to` does both; read `x` behind it only.

    Attributes:
        index: [B] int64, position of the sample in its split (the same in every run).
        label: [B] int64 class, -1 where the sample has none.
        x: modality or view -> [B, ...] input tensor.
        present: modality or view -> [B] bool, False where the sample lacks the modality.
        valid: [B] bool, False on padding rows of an evaluation pass.
        target: [B, ...] float regression target, or None.
        key: [B] int64, `key_number` of the sample's key, which augmentation draws by; 0 on
            padding rows, and everywhere where it is not given.
        later: modality or view -> what is left to do to its `x`.
        mixer: What blends rows once their inputs are finished; None where none is, or was.
        mixed: What blending made of the labels; None where there was none.
    """

    index: Tensor
    label: Tensor
    x: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    valid: Tensor
    target: Tensor | None = None
    key: Tensor = None  # type: ignore[assignment]
    later: Mapping[str, Finish] = field(default_factory=dict, compare=False)
    mixer: Mixer | None = field(default=None, compare=False)
    mixed: Mixed | None = None

    def __post_init__(self) -> None:
        if self.key is None:
            object.__setattr__(self, "key", torch.zeros_like(self.index))

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """Move to `device`, and finish there; floating-point inputs become `dtype`, if given.

        Rows that lack a modality are zeros in it, and are not mixed with others.
        """

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        key, label, valid = move(self.key), move(self.label), move(self.valid)
        present = {m: move(t) for m, t in self.present.items()}
        x = {name: self._finished(name, move(t), key) for name, t in self.x.items()}
        mixed = self.mixed
        if self.mixer is not None:
            x, mixed = self.mixer(x, present, label, key, valid)
        if dtype is not None:
            x = {m: t.to(dtype) if t.is_floating_point() else t for m, t in x.items()}
        return replace(
            self,
            index=move(self.index),
            label=label,
            x=x,
            present=present,
            valid=valid,
            target=None if self.target is None else move(self.target),
            key=key,
            later={},
            mixer=None,
            mixed=mixed,
        )

    def _finished(self, name: str, x: Tensor, key: Tensor) -> Tensor:
        """One input from its moved compact form; zeros where the modality is absent."""
        if name not in self.later:
            return x
        done = self.later[name](x, key)
        there = self.present[name]
        if there.device.type == "cpu" and bool(there.all()):
            return done
        there = there.to(done.device, non_blocking=True)
        return done.masked_fill(~there.view(-1, *[1] * (done.ndim - 1)), 0)

    def finish_one(self, name: str, device: torch.device) -> Tensor:
        """Return one modality's input on `device`."""
        x = self.x[name].to(device, non_blocking=True)
        return self._finished(name, x, self.key.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Copy the inputs to pinned memory."""
        return replace(self, x={name: t.pin_memory() for name, t in self.x.items()})

    def rows(self, chosen: slice | Tensor) -> Batch:
        """Return some of the rows."""
        return replace(
            self,
            index=self.index[chosen],
            label=self.label[chosen],
            x={m: t[chosen] for m, t in self.x.items()},
            present={m: t[chosen] for m, t in self.present.items()},
            valid=self.valid[chosen],
            target=None if self.target is None else self.target[chosen],
            key=self.key[chosen],
            mixed=None if self.mixed is None else self.mixed.rows(chosen),
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
            key=join(lambda p: p.key),
            later=first.later,
        )
