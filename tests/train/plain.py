"""Encoders without weights, for tests of what is made of their outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from outmodal.data.inputs import SeriesInput, VectorInput
from outmodal.data.manifest import Dataset
from outmodal.data.transform import Transform
from outmodal.models.features import unit_norm
from outmodal.train.retrieval import Scorer, mean_cosine


class Plain:
    """Gives inputs as they are, beside a constant; see `train.sources.Source`."""

    def __init__(self, dataset: Dataset, modalities: tuple[str, ...]) -> None:
        configs = {"pose": VectorInput(dim=7), "force": SeriesInput(length=16, channels=3)}
        self.dataset, self.modalities, self.name = dataset, modalities, "plain"
        self.inputs: dict[str, Transform] = {
            m: configs[m].build(dataset, m, None) for m in modalities
        }
        self.classifies: str | None = None
        self.classes: tuple[str, ...] = ()
        self.scorer: Scorer = mean_cosine

    def to(self, device: torch.device) -> None:
        """There is nothing to move."""

    def outputs(self, modality: str, x: Tensor) -> dict[str, Tensor]:
        """See `Source`."""
        flat = torch.nn.functional.pad(x.flatten(1).float(), (0, 1), value=1.0)
        return {"representation": flat, "embedding": unit_norm(flat)}
