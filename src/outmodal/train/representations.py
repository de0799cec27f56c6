"""What frozen encoders say about the samples of a split.

They run on the accelerator where there is one, and so does what is made of their outputs. Several
processes share a split, each encoding whole batches of it, so that every row is computed in the
same batch, and comes out the same, for any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.transform import Transform
from outmodal.errors import UserError, nearest
from outmodal.models.features import unit_norm
from outmodal.train import gather
from outmodal.train.run import RunPlan
from outmodal.train.shares import all_rows, own_rows, shared
from outmodal.train.sources import Source, open_run_source
from outmodal.train.together import on_all

ProbeOn = Literal["repr", "embedding"]
"""Representation r, before the projection head, or the unit embedding after it."""


@dataclass(frozen=True)
class Encoded:
    """N samples of a split, in its order, all on one device.

    Attributes:
        representation: Modality -> r [N, d_r].
        unit: Modality -> unit embedding [N, d].
        present: Modality -> [N] bool, False where the sample lacks it.
        label: [N] class, -1 where the sample has none.
        target: [N, k] regression target, NaN where the sample has none; None where none has.
        best: [N, 5] classes by rank (or all of fewer) for the modality that the encoder has a
            classifier of; None without one.
        index: [N] place in the split; None where it is not known.
    """

    representation: Mapping[str, Tensor]
    unit: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    label: Tensor
    target: Tensor | None
    best: Tensor | None = None
    index: Tensor | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the order of the run."""
        return tuple(self.unit)

    def features(self, on: ProbeOn) -> Mapping[str, Tensor]:
        """What a probe sees."""
        return self.representation if on == "repr" else self.unit

    def having(self, modalities: Sequence[str]) -> Tensor:
        """[N] bool: the samples that have all of these modalities."""
        return torch.stack([self.present[m] for m in modalities]).all(dim=0)


class Encoder:
    """Frozen encoders over a data set.

    Args:
        source: What encodes.
        data: How the data set is read; its `batch` is that of the encoders.

    Attributes:
        source: What encodes.
        dataset: The data set.
        modalities: What is encoded.
        device: Where it is computed.
        data: How the data set is read.
    """

    def __init__(self, source: Source, data: StreamConfig) -> None:
        self.device = _device()
        source.to(self.device)
        self.source, self.dataset = source, source.dataset
        self.modalities = source.modalities
        self.data = data
        self._loader = Loader(self.dataset, source.inputs, data)

    def encode(
        self,
        split: str,
        modalities: Sequence[str] | None = None,
        *,
        changed: Mapping[str, Transform] | None = None,
        most: int = 0,
    ) -> Encoded:
        """Run encoders over a split.

        Args:
            split: Its name.
            modalities: What to encode; None is all.
            changed: Transforms in place of the encoders' own; nothing of it is cached.
            most: Samples at most, spread evenly over the split; 0 is all.

        Raises:
            UserError: The data set lacks the split, or an encoder is asked for that is not there.
        """
        wanted = self.modalities if modalities is None else tuple(modalities)
        for m in wanted:
            self.require(m)
        chosen = selected(self.dataset.split(split).samples, most)
        made = on_all(lambda: self._own(split, wanted, chosen, changed))
        return made if not shared(len(chosen), self.data.batch) else _of_all(made)

    def require(self, modality: str) -> None:
        """Raise UserError where a modality has no encoder."""
        if modality not in self.modalities:
            raise UserError(
                f"{self.source.name} has no encoder of '{modality}'"
                + nearest(modality, self.modalities)
            )

    def blank(self, modality: str) -> tuple[Tensor, Tensor]:
        """Representation [d_r] and unit embedding [d] of an input without information: zeros
        where the encoder reads numbers, a single blank where it reads text (`Transform.blank`)."""
        raw = bool(getattr(self.source, "raw_substitutes", False))
        x = self.source.inputs[modality].blank(raw=raw)[None]
        with torch.no_grad():
            out = self.source.outputs(modality, x.to(self.device))
        return out["representation"][0].float(), unit_norm(out["embedding"][0].float())

    def close(self) -> None:
        """End the loader's workers."""
        self._loader.close()

    def _own(
        self,
        split: str,
        wanted: tuple[str, ...],
        chosen: NDArray[np.int64],
        changed: Mapping[str, Transform] | None,
    ) -> Encoded:
        """This rank's rows."""
        rows = own_rows(len(chosen), self.data.batch)
        spec = StreamSpec("encode", split, wanted, self.data.batch, chosen[rows.start : rows.stop])
        if changed is None:
            return self._through(self._loader, spec)
        uncached = self.data.model_copy(update={"cache_mb": 0})
        with Loader(self.dataset, {**self.source.inputs, **changed}, uncached) as loader:
            return self._through(loader, spec)

    def _through(self, loader: Loader, spec: StreamSpec) -> Encoded:
        with torch.no_grad():
            parts = [
                self._encode_batch(batch.to(self.device), spec.modalities)
                for batch in loader.open_pass(spec)
            ]
        if not parts:
            raise UserError(f"split '{spec.split}' has no samples: choose another split")
        return _joined(parts, spec.modalities)

    def _encode_batch(self, batch: Batch, modalities: Sequence[str]) -> Encoded:
        rows = batch.valid
        found = {m: self.source.outputs(m, batch.x[m]) for m in modalities}
        best = next((out["best"][rows] for out in found.values() if "best" in out), None)
        return Encoded(
            {m: out["representation"][rows].float() for m, out in found.items()},
            {m: unit_norm(out["embedding"][rows].float()) for m, out in found.items()},
            {m: batch.present[m][rows].bool() for m in found},
            batch.label[rows],
            None if batch.target is None else batch.target[rows].float().flatten(1),
            best,
            batch.index[rows],
        )


def selected(count: int, most: int) -> NDArray[np.int64]:
    """Places 0..count-1, or `most` of them at even distances.

    >>> selected(10, 4).tolist()
    [0, 2, 5, 7]
    """
    kept = count if not most else min(most, count)
    return np.arange(kept, dtype=np.int64) * count // max(1, kept)


@contextmanager
def opened(source: Source, data: StreamConfig) -> Iterator[Encoder]:
    """An encoder that is closed afterwards."""
    encoder = Encoder(source, data)
    try:
        yield encoder
    finally:
        encoder.close()


@contextmanager
def open_encoder(plan: RunPlan, data: str = "") -> Iterator[Encoder]:
    """Open the encoders of a run.

    Args:
        plan: The run.
        data: Another data set; "" is the run's own.

    Raises:
        UserError: The run has no checkpoint, or its method encodes nothing by modality.
    """
    source, config = open_run_source(plan, data)
    with opened(source, config) as encoder:
        yield encoder


def _device() -> torch.device:
    """This rank's; alone, the accelerator where there is one."""
    world = gather.world()
    if world.size > 1 or not torch.cuda.is_available():
        return world.device
    return torch.device("cuda")


def _of_all(own: Encoded) -> Encoded:
    """The rows of all ranks."""
    width = 0 if own.target is None else own.target.shape[1]
    width = gather.max_over_ranks([width])[0]
    target = own.target
    if target is None and width:
        target = torch.full((len(own.label), width), torch.nan, device=own.label.device)
    return Encoded(
        {m: all_rows(t) for m, t in own.representation.items()},
        {m: all_rows(t) for m, t in own.unit.items()},
        {m: all_rows(t) for m, t in own.present.items()},
        all_rows(own.label),
        None if target is None else all_rows(target),
        None if own.best is None else all_rows(own.best),
        None if own.index is None else all_rows(own.index),
    )


def _joined(parts: Sequence[Encoded], modalities: Sequence[str]) -> Encoded:
    index = [p.index for p in parts if p.index is not None]
    best = [p.best for p in parts if p.best is not None]
    return Encoded(
        {m: torch.cat([p.representation[m] for p in parts]) for m in modalities},
        {m: torch.cat([p.unit[m] for p in parts]) for m in modalities},
        {m: torch.cat([p.present[m] for p in parts]) for m in modalities},
        torch.cat([p.label for p in parts]),
        _targets(parts),
        torch.cat(best) if best else None,
        torch.cat(index) if index else None,
    )


def _targets(parts: Sequence[Encoded]) -> Tensor | None:
    shapes = {p.target.shape[1:] for p in parts if p.target is not None}
    if not shapes:
        return None
    width = shapes.pop()
    filled = [
        torch.full((len(p.label), *width), torch.nan, device=p.label.device)
        if p.target is None
        else p.target
        for p in parts
    ]
    return torch.cat(filled)


def without(encoded: Encoded, modality: str, rows: Tensor, blank: tuple[Tensor, Tensor]) -> Encoded:
    """The samples as they look where `rows` [N] bool have a blank in place of a modality."""
    r, e = blank
    return replace(
        encoded,
        representation={
            **encoded.representation,
            modality: torch.where(rows[:, None], r, encoded.representation[modality]),
        },
        unit={
            **encoded.unit,
            modality: torch.where(rows[:, None], e, encoded.unit[modality]),
        },
    )
