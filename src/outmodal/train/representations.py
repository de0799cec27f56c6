"""What the frozen encoders of a run say about the samples of a split.

They run on the accelerator where there is one, and so does what is made of their outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.manifest import Dataset
from outmodal.data.stream import Loader
from outmodal.errors import UserError
from outmodal.models.features import unit_norm
from outmodal.train.methods import AnyMethod
from outmodal.train.run import RunPlan, restore_method

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
    """

    representation: Mapping[str, Tensor]
    unit: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    label: Tensor
    target: Tensor | None

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
    """The encoders of a run's newest checkpoint, over the data that it was opened on.

    Attributes:
        method: The method, in eval mode.
        dataset: The data set.
        modalities: What the method encodes.
        device: Where it computes.
    """

    def __init__(self, method: AnyMethod, dataset: Dataset, loader: Loader, batch: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.method, self.dataset = method.to(self.device), dataset
        self.modalities = encoded_modalities(method)
        self._loader, self._batch = loader, batch

    def encode(self, split: str) -> Encoded:
        """Run every encoder over a split; UserError if the data set lacks the split."""
        self.dataset.split(split)
        spec = StreamSpec("encode", split, self.modalities, self._batch)
        with torch.no_grad():
            passed = self._loader.open_pass(spec)
            parts = [self._encode_batch(batch.to(self.device)) for batch in passed]
        return _joined(parts, self.modalities)

    def _encode_batch(self, batch: Batch) -> Encoded:
        rows = batch.valid
        found = {m: self.method.infer(f"embedding:{m}", batch) for m in self.modalities}
        return Encoded(
            {m: out["representation"][rows].float() for m, out in found.items()},
            {m: unit_norm(out["embedding"][rows].float()) for m, out in found.items()},
            {m: out["present"][rows].bool() for m, out in found.items()},
            batch.label[rows],
            None if batch.target is None else batch.target[rows].float().flatten(1),
        )


@contextmanager
def open_encoder(plan: RunPlan, data: str = "") -> Iterator[Encoder]:
    """Open the encoders of a run.

    Args:
        plan: The run.
        data: Another data set; "" is the run's own.

    Raises:
        UserError: The run has no checkpoint, or its method encodes nothing by modality.
    """
    if data:
        plan = replace(plan, data=plan.data.model_copy(update={"path": data}))
    method, transforms, dataset = restore_method(plan)
    with Loader(dataset, transforms, plan.data) as loader:
        yield Encoder(method, dataset, loader, plan.data.batch)


def encoded_modalities(method: AnyMethod) -> tuple[str, ...]:
    """The modalities that a method has encoders of.

    Raises:
        UserError: There are none.
    """
    several = getattr(method, "modalities", None)
    if several:
        return tuple(several)
    one = getattr(method, "unknown", None)
    if isinstance(one, str):
        return (one,)
    raise UserError(
        f"a run of method '{type(method).__name__.lower()}' has no encoders to look at: evaluate a "
        "run of method align"
    )


def _joined(parts: Sequence[Encoded], modalities: Sequence[str]) -> Encoded:
    targets = [p.target for p in parts]
    shapes = {t.shape[1:] for t in targets if t is not None}
    target = None
    if shapes:
        width = shapes.pop()
        filled = [
            torch.full((len(p.label), *width), torch.nan, device=p.label.device)
            if p.target is None
            else p.target
            for p in parts
        ]
        target = torch.cat(filled)
    return Encoded(
        {m: torch.cat([p.representation[m] for p in parts]) for m in modalities},
        {m: torch.cat([p.unit[m] for p in parts]) for m in modalities},
        {m: torch.cat([p.present[m] for p in parts]) for m in modalities},
        torch.cat([p.label for p in parts]),
        target,
    )
