"""What can be evaluated by its encoders: a run, exports, perceptors; all seen in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.stream import StreamConfig
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.export_folder import Export, load_export
from outmodal.models.features import feature_norm
from outmodal.models.perceptors import Perceptor
from outmodal.train.checkpoint import CheckpointStore
from outmodal.train.classes import among
from outmodal.train.methods import Method
from outmodal.train.methods.supervised import Supervised
from outmodal.train.results import five_best
from outmodal.train.retrieval import Scorer, mean_cosine
from outmodal.train.run import RunPlan, restore_method, stored_data
from outmodal.train.zero_shot import nearest_classes


class Source(Protocol):
    """Frozen encoders with the data set that they are evaluated on.

    Attributes:
        name: For messages and records.
        dataset: The data set.
        inputs: Modality -> its encoder's transform.
        modalities: What is encoded, in order.
        classifies: The modality that has a classifier, None where none has.
        classes: What the classifier's numbers mean.
        scorer: How well candidates fit queries.
    """

    name: str
    dataset: Dataset
    inputs: Mapping[str, Transform]
    modalities: tuple[str, ...]
    classifies: str | None
    classes: tuple[str, ...]
    scorer: Scorer

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        ...

    def outputs(self, modality: str, x: Tensor) -> dict[str, Tensor]:
        """Encode inputs [B, ...] of a modality on the weights' device, without gradients.

        Returns:
            "representation" [B, d_r] and "embedding" [B, d]; where it has a classifier "best"
            [B, k], the five best classes by rank, or all of fewer.
        """
        ...


class RunSource:
    """The encoders of a run's newest checkpoint; see `Source`.

    Attributes:
        method: The method, in eval mode.
        checkpoint: Name of the checkpoint.
        own: Whether the data set is the one that the method was made with.
        raw_substitutes: Whether the method's substitutes are zeros before they are normalised.
    """

    def __init__(
        self,
        plan: RunPlan,
        method: Method,
        inputs: Mapping[str, Transform],
        dataset: Dataset,
        *,
        own: bool,
    ) -> None:
        self.name = str(plan.out)
        newest = CheckpointStore(plan.out / "checkpoints").newest()
        self.checkpoint = None if newest is None else newest.name
        self.method, self.dataset, self.inputs, self.own = method, dataset, inputs, own
        self.raw_substitutes = bool(getattr(method, "raw_substitutes", False))
        self.modalities = encoded_modalities(method)
        for modality in self.modalities:
            _check_modality(self.name, dataset, modality)
        self.classes = method.context.classes
        self.classifies = method.unknown if isinstance(method, Supervised) else None
        scorer = getattr(method, "score", None)
        self.scorer: Scorer = mean_cosine
        if callable(scorer) and not isinstance(method, Supervised):  # whose score is of a pass
            self.scorer = scorer

    def to(self, device: torch.device) -> None:
        """See `Source`."""
        self.method.to(device)

    def outputs(self, modality: str, x: Tensor) -> dict[str, Tensor]:
        """See `Source`."""
        out = self.method.infer(f"embedding:{modality}", _bare(modality, x))
        found = {name: out[name] for name in ("representation", "embedding")}
        if isinstance(self.method, Supervised):
            z = feature_norm(out["embedding"], self.method.norm)
            found["best"] = five_best(among(self.method.classify(z), self.dataset.manifest))
        return found


class ExportSource:
    """Exported encoders, one a modality; see `Source`."""

    def __init__(self, exports: Sequence[Export], dataset: Dataset) -> None:
        self.name = ", ".join(str(e.folder) for e in exports)
        self.dataset = dataset
        self._exports = {e.info.modality: e for e in exports}
        self.modalities = tuple(self._exports)
        if len(self.modalities) < len(exports):
            raise UserError(f"two exports of one modality among {self.name}: leave one of them out")
        for e in exports:
            _check_modality(str(e.folder), dataset, e.info.modality)
        self.inputs: Mapping[str, Transform] = {
            m: e.transform(dataset, m) for m, e in self._exports.items()
        }
        able = [m for m, e in self._exports.items() if e.classifier is not None]
        self.classifies = able[0] if len(exports) == 1 and able else None
        self.classes = exports[0].info.classes if self.classifies else ()
        self.scorer: Scorer = mean_cosine

    def to(self, device: torch.device) -> None:
        """See `Source`."""
        for e in self._exports.values():
            for module in (e.learner, e.head, e.classifier):
                if module is not None:
                    module.to(device)

    def outputs(self, modality: str, x: Tensor) -> dict[str, Tensor]:
        """See `Source`."""
        out = self._exports[modality].outputs(x)
        found = {"representation": out["repr"], "embedding": out["embedding"]}
        if modality == self.classifies:
            found["best"] = five_best(among(out["logits"].float(), self.dataset.manifest))
        return found


class PerceptorSource:
    """Perceptors, one a modality; see `Source`.

    Args:
        perceptors: The perceptors.
        dataset: The data set.
        table: [C, d] unit vectors of the classes for the first perceptor; None without.
    """

    def __init__(
        self, perceptors: Sequence[Perceptor], dataset: Dataset, table: Tensor | None = None
    ) -> None:
        self.name = ", ".join(p.identity for p in perceptors)
        self.dataset = dataset
        self._perceptors = {p.modality: p for p in perceptors}
        self.modalities = tuple(self._perceptors)
        if len(self.modalities) < len(perceptors):
            raise UserError(f"two perceptors of one modality among {self.name}: leave one out")
        self.inputs: Mapping[str, Transform] = {p.modality: p.transform for p in perceptors}
        self._table, self._subset = table, dataset.manifest.subset
        self.classifies = None if table is None else self.modalities[0]
        self.classes = () if table is None else dataset.manifest.classes
        self.scorer: Scorer = mean_cosine

    def to(self, device: torch.device) -> None:
        """See `Source`."""
        for perceptor in self._perceptors.values():
            perceptor.to(device)
        if self._table is not None:
            self._table = self._table.to(device)

    def outputs(self, modality: str, x: Tensor) -> dict[str, Tensor]:
        """See `Source`; representation and embedding are the same."""
        e = self._perceptors[modality].encode(x)
        found = {"representation": e, "embedding": e}
        if modality == self.classifies and self._table is not None:
            found["best"] = nearest_classes(e, self._table.to(e.device), subset=self._subset)
        return found


def open_run_source(
    plan: RunPlan, data: str = "", split: str = ""
) -> tuple[RunSource, StreamConfig]:
    """The encoders of a run's newest checkpoint, EMA weights where the run has them.

    Args:
        plan: The run.
        data: Another data set, whose classes may be others; "" is the run's own.
        split: What the method itself evaluates; "" is the run's evaluation split.

    Returns:
        The encoders, and how their data are read.

    Raises:
        UserError: The run has no complete checkpoint, the data set lacks the split or a
            modality, or the method encodes nothing by modality.
    """
    changed = changed_data(plan.data, data, split)
    if not is_other(plan, data):
        method, inputs, dataset = restore_method(replace(plan, data=changed))
        return RunSource(plan, method, inputs, dataset, own=True), changed
    method, inputs, _ = restore_method(plan)
    dataset = stored_data(replace(plan, data=changed))
    encoded = encoded_modalities(method)
    for modality in encoded:
        _check_modality(str(plan.out), dataset, modality)
    # as they were resolved in training, for the files of the other data set
    made = {m: inputs[m].config.build(dataset, m, plan.out) for m in encoded}
    return RunSource(plan, method, made, dataset, own=False), changed


def open_exports(folders: Sequence[Path], data: str) -> ExportSource:
    """Exported encoders on a data set; UserError where one cannot be read or does not fit it."""
    exports = [load_export(folder) for folder in folders]
    return ExportSource(exports, open_dataset(data))


def is_other(plan: RunPlan, data: str) -> bool:
    """Whether `data` names another data set than the run's own."""
    return bool(data) and (bool(plan.data.mix) or data != plan.data.path)


def changed_data(config: StreamConfig, data: str, split: str) -> StreamConfig:
    """The `data:` section with another data set and evaluation split, where they are given."""
    update: dict[str, Any] = {"eval_split": split or config.eval_split}
    if data:
        update |= {"path": data, "mix": ()}
    return config.model_copy(update=update)


def encoded_modalities(method: Method) -> tuple[str, ...]:
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


def _bare(modality: str, x: Tensor) -> Batch:
    """A batch of inputs of one modality, about which nothing else is known."""
    every = torch.ones(len(x), dtype=torch.bool, device=x.device)
    nothing = torch.full((len(x),), -1, device=x.device)
    return Batch(nothing, nothing, {modality: x}, {modality: every}, every)


def _check_modality(name: str, dataset: Dataset, modality: str) -> None:
    """Raise UserError where a data set lacks what an encoder reads."""
    if modality not in dataset.manifest.modalities:
        known = ", ".join(dataset.manifest.modalities)
        raise UserError(
            f"{name} encodes '{modality}', which data set '{dataset.manifest.name}' does not have "
            f"(it has {known}): choose a data set with '{modality}'"
        )
