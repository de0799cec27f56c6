"""Evaluation of what is on disk: a run by its method, an export by its classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from outmodal.data.batch import StreamSpec
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.export_folder import Export, load_export
from outmodal.train.diagnostics import top_k_accuracy
from outmodal.train.methods import AnyMethod
from outmodal.train.run import RunPlan, restore_method


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: Name -> value, in 0..1 where it is a rate.
        samples: Samples of the split.
        per_class: Class -> accuracy; empty where there is no classifier.
    """

    metrics: dict[str, float]
    samples: int
    per_class: dict[str, float]


class LocalPasses:
    """Passes of a method in this process, without an engine (see `methods.base.Passes`)."""

    def __init__(
        self,
        method: AnyMethod,
        dataset: Dataset,
        inputs: Mapping[str, Transform],
        data: StreamConfig,
    ) -> None:
        self._method = method
        self._loader = Loader(dataset, inputs, data)

    def infer(self, what: str, spec: StreamSpec) -> dict[str, Tensor]:
        """See `Passes.infer`: batches come in index order, so rows need no sorting."""
        rows: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for batch in self._loader.open_pass(spec):
                for name, value in self._method.infer(what, batch).items():
                    rows.setdefault(name, []).append(value[batch.valid])
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """See `Passes.weights`."""
        return {name: p.detach().float().cpu() for name, p in module.named_parameters()}

    def close(self) -> None:
        """End the loader's workers."""
        self._loader.close()


def evaluate_run(plan: RunPlan, data: str = "", split: str = "") -> Evaluation:
    """Evaluate a run's newest checkpoint with the method's own metrics.

    Args:
        plan: The run.
        data: Another data set with the same classes; "" is the run's own.
        split: Another split; "" is the run's evaluation split.
    """
    changed = plan.data.model_copy(
        update={"path": data or plan.data.path, "eval_split": split or plan.data.eval_split}
    )
    _same_classes(plan, changed.path)
    plan = replace(plan, data=changed)
    method, transforms, dataset = restore_method(plan)
    passes = LocalPasses(method, dataset, transforms, changed)
    try:
        metrics = method.evaluate(passes)
    finally:
        passes.close()
    return Evaluation(metrics, dataset.split(changed.eval_split).samples, {})


def _same_classes(plan: RunPlan, data: str) -> None:
    if data == plan.data.path:
        return
    trained, given = (open_dataset(d).manifest.classes for d in (plan.data.path, data))
    if trained != given:
        raise UserError(
            f"{data} has the classes {', '.join(given)}, the run was trained on "
            f"{', '.join(trained)}: evaluate on a data set with the same classes"
        )


def evaluate_export(
    folder: Path, data: str, split: str = "test", batch: int = 256, workers: int = 0
) -> Evaluation:
    """Classify a split with an export's own classifier.

    Raises:
        UserError: The export has no classifier, or the data set lacks its modality or has
            other classes.
    """
    export, dataset = load_export(folder), open_dataset(data)
    _check_export(export, dataset)
    modality = export.info.modality
    transform = export.transform(dataset, modality)
    config = StreamConfig(path=data, eval_split=split, batch=batch, workers=workers)
    spec = StreamSpec("evaluate", split, (modality,), batch)
    logits, labels = [], []
    with Loader(dataset, {modality: transform}, config) as loader:
        for part in loader.open_pass(spec):
            rows = part.valid & part.present[modality] & (part.label >= 0)
            logits.append(export.outputs(part.x[modality])["logits"][rows])
            labels.append(part.label[rows])
    scores, truth = torch.cat(logits), torch.cat(labels)
    metrics = {f"top{k}": top_k_accuracy(scores, truth, k) for k in (1, 5)}
    hits = (scores.argmax(1) == truth).float()
    per_class = {
        name: float(hits[truth == c].mean())
        for c, name in enumerate(export.info.classes)
        if bool((truth == c).any())
    }
    return Evaluation(metrics, len(truth), per_class)


def _check_export(export: Export, dataset: Dataset) -> None:
    if export.classifier is None:
        raise UserError(
            f"{export.folder} has no classifier: evaluate its run, or export one that has labels"
        )
    if export.info.classes != dataset.manifest.classes:
        raise UserError(
            f"{export.folder} knows the classes {', '.join(export.info.classes)}, the data set "
            f"{', '.join(dataset.manifest.classes)}: evaluate on a data set with the same classes"
        )
    dataset.modality(export.info.modality)
