"""Perceptors that encode batch by batch while a run trains, instead of once before it.

They stand outside the engine: no part of the method's modules, no gradient, no wrapper. For
inputs that change from run to run, and data sets too large for their features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.perceptors import Perceptor
from outmodal.train.feed import Feed


def seen_through(
    dataset: Dataset, live: Sequence[Perceptor], learned: Sequence[str]
) -> tuple[Dataset, dict[str, Transform]]:
    """Return the data set as the method sees it, and what reads the perceived modalities.

    Args:
        dataset: The stored data.
        live: Perceptors, at most one a modality.
        learned: Modalities of learners.

    Raises:
        UserError: Two perceptors, or a perceptor and a learner, for one modality.
    """
    specs = dict(dataset.manifest.modalities)
    inputs: dict[str, Transform] = {}
    for p in live:
        if p.modality in inputs or p.modality in learned:
            raise UserError(
                f"the live perceptor of '{p.modality}' shares its modality with another perceptor "
                "or a learner: leave one of them out"
            )
        inputs[p.modality] = p.transform
        specs[p.modality] = Modality(kind="vector", ext="npy", shape=(p.dim,), perceptor=p.identity)
    manifest = dataset.manifest.model_copy(update={"modalities": specs})
    return dataset.with_manifest(manifest), inputs


class LiveFeed:
    """A feed whose perceived modalities are encoded as batches come.

    Args:
        feed: Gives the perceptors' inputs.
        live: Modality -> perceptor, on the device where it is to compute.
    """

    def __init__(self, feed: Feed, live: Mapping[str, Perceptor]) -> None:
        self._feed, self._live = feed, live

    def epoch(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        """See Feed.epoch."""
        for batches in self._feed.epoch(specs, epoch, start_step, steps):
            yield {name: self._perceived(batch) for name, batch in batches.items()}

    def full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        """See Feed.full_pass."""
        for batch in self._feed.full_pass(spec):
            yield self._perceived(batch)

    def state(self) -> dict[str, Any]:
        """See Feed.state."""
        return self._feed.state()

    def _perceived(self, batch: Batch) -> Batch:
        """Vectors of what is there; zeros, as in stored features, for what is not."""
        x, later = dict(batch.x), dict(batch.later)
        for modality in x.keys() & self._live.keys():
            perceptor, there = self._live[modality], batch.present[modality]
            rows = torch.zeros(len(there), perceptor.dim, device=x[modality].device)
            if bool(there.any()):
                seen = batch.rows(there).finish_one(modality, perceptor.device)
                rows[there] = perceptor.encode(seen).to(rows.device)
            x[modality] = rows
            later.pop(modality, None)
        return replace(batch, x=x, later=later)
