"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.data.buffers import Buffers
from outmodal.data.plan import PADDING
from outmodal.errors import UserError

TARGET = "target"
"""Name of the member with a regression target."""


@dataclass(frozen=True)
class Sample:
    """One row of a batch.

    Attributes:
        index: Position in the split, PADDING on padding rows.
        label: Class, -1 where the sample has none.
        x: column -> compact input, zeros where it is absent.
        present: column -> whether the sample has it.
        target: Regression target, or None.
        key: Number of the sample's key; 0 on padding rows.
    """

    index: int
    label: int
    x: Mapping[str, Tensor]
    present: Mapping[str, bool]
    target: Tensor | None = None
    key: int = 0


def collate(samples: Sequence[Sample], pin: bool = False, buffers: Buffers | None = None) -> Batch:
    """Stack samples into a batch. Where only some have a target, the others' are NaN.

    Args:
        samples: Rows.
        pin: Put inputs into pinned memory.
        buffers: Where else their memory comes from.
    """
    buffers = buffers or Buffers()
    first = samples[0]
    index = torch.tensor([s.index for s in samples])
    targets = [None if s.target is None else s.target.unsqueeze(0) for s in samples]
    return Batch(
        index=index,
        label=torch.tensor([s.label for s in samples]),
        x={name: _stack([s.x[name] for s in samples], pin, buffers) for name in first.x},
        present={name: torch.tensor([s.present[name] for s in samples]) for name in first.x},
        valid=index != PADDING,
        target=_join_targets(targets, [1] * len(samples)),
        key=torch.tensor([s.key for s in samples]),
    )


def _stack(rows: Sequence[Tensor], pin: bool, buffers: Buffers) -> Tensor:
    """torch.stack in this thread alone: torch would share the copy with all cores."""
    shape, dtype = (len(rows), *rows[0].shape), rows[0].dtype
    out = torch.empty(shape, dtype=dtype, pin_memory=True) if pin else buffers.empty(shape, dtype)
    np.stack([row.numpy() for row in rows], out=out.numpy())
    return out


def join(parts: Sequence[Batch]) -> Batch:
    """Concatenate batches as `Batch.concat` does, also if some have no target (NaN then)."""
    target = _join_targets([p.target for p in parts], [len(p) for p in parts])
    joined = Batch.concat([replace(p, target=None) for p in parts])
    return replace(joined, target=target)


def _join_targets(targets: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """Concatenate along the rows; NaN for rows without a target, None if no row has one."""
    shapes = {tuple(t.shape[1:]) for t in targets if t is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise UserError(
            f"members '{TARGET}.npy' differ in shape ({', '.join(map(str, sorted(shapes)))}): "
            "a regression target needs the same shape in every sample; build the data set again"
        )
    (shape,) = shapes
    filled = [
        torch.full((n, *shape), torch.nan) if t is None else t
        for t, n in zip(targets, rows, strict=True)
    ]
    return torch.cat(filled)
