"""Evaluation of what is on disk: a run by its method, an export by its classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from outmodal.data.batch import StreamSpec
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.opening import open_data
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.train.classes import difference
from outmodal.train.intervals import Bootstrap
from outmodal.train.methods import Method
from outmodal.train.results import Evaluation
from outmodal.train.run import RunPlan
from outmodal.train.shares import all_rows, own_rows, shared

__all__ = ["Evaluation", "LocalPasses", "evaluate_export", "evaluate_run"]


class LocalPasses:
    """Passes of a method in this process, without an engine (see `methods.base.Passes`)."""

    def __init__(
        self,
        method: Method,
        dataset: Dataset,
        inputs: Mapping[str, Transform],
        data: StreamConfig,
    ) -> None:
        self._method, self._dataset = method, dataset
        self._loader = Loader(dataset, inputs, data)

    def infer(self, what: str, spec: StreamSpec) -> dict[str, Tensor]:
        """See `Passes.infer`. Each process of a group runs whole batches of the pass."""
        places = np.arange(self._dataset.split(spec.split).samples, dtype=np.int64)
        select = places if spec.select is None else spec.select
        own = own_rows(len(select), spec.batch)
        part = replace(spec, select=select[own.start : own.stop])
        rows: dict[str, list[Tensor]] = {}
        device = next((p.device for p in self._method.parameters()), torch.device("cpu"))
        with torch.no_grad():
            for batch in self._loader.open_pass(part):
                for name, value in self._method.infer(what, batch.to(device)).items():
                    rows.setdefault(name, []).append(value.cpu()[batch.valid])
        joined = {name: torch.cat(parts) for name, parts in rows.items()}
        if not shared(len(select), spec.batch):
            return joined
        return {name: all_rows(value) for name, value in joined.items()}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """See `Passes.weights`."""
        return {name: p.detach().float().cpu() for name, p in module.named_parameters()}

    @torch.no_grad()
    def set_weights(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """See `Passes.set_weights`."""
        for name, p in module.named_parameters():
            if name in weights:
                p.copy_(weights[name])

    def close(self) -> None:
        """End the loader's workers."""
        self._loader.close()


def evaluate_run(
    plan: RunPlan, data: str = "", split: str = "", bootstrap: Bootstrap | None = None
) -> Evaluation:
    """Evaluate a run's newest checkpoint as the run does: with EMA weights where it keeps them.

    Args:
        plan: The run.
        data: Another data set with the same classes; "" is the run's own.
        split: Another split; "" is the run's evaluation split.
        bootstrap: Of the intervals; None is the usual.

    Raises:
        UserError: See `classify_task`.
    """
    from outmodal.train.classifying import classify_run
    from outmodal.train.representations import opened
    from outmodal.train.sources import open_run_source

    require_classes(plan, data)
    source, config = open_run_source(plan, data, split)
    with opened(source, config) as encoder:
        return classify_run(
            encoder, config.train_split, config.eval_split, bootstrap or Bootstrap()
        )


def require_classes(plan: RunPlan, data: str) -> None:
    """Raise UserError where a data set has other classes than a run's own."""
    if not data or (data == plan.data.path and not plan.data.mix):
        return
    trained, given = open_data(plan.data).manifest.classes, open_dataset(data).manifest.classes
    differ = difference(given, trained)
    if differ:
        raise UserError(
            f"{data} {differ}: evaluate on a data set with the same classes (sets of ImageNet's "
            "are built --like it), or the run's representations with --task probe or knn"
        )


def evaluate_export(
    folder: Path,
    data: str,
    split: str = "test",
    batch: int = 256,
    workers: int = 0,
    bootstrap: Bootstrap | None = None,
) -> Evaluation:
    """Classify a split with an export's own classifier.

    Raises:
        UserError: The export has no classifier, or the data set lacks its modality or has
            other classes.
    """
    from outmodal.train.classifying import classify_task
    from outmodal.train.representations import opened
    from outmodal.train.sources import open_exports

    source = open_exports([folder], data)
    config = StreamConfig(path=data, eval_split=split, batch=batch, workers=workers)
    with opened(source, config) as encoder:
        return classify_task(encoder, split, bootstrap or Bootstrap())
