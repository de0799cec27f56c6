"""What an evaluation says: tidy rows with intervals, and the same under flat names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from outmodal.train.intervals import Bootstrap, Score

FORMAT = 1
COLUMNS = (
    "task", "metric", "modality", "combination", "class", "corruption", "severity", "rate",
    "value", "low", "high", "samples",
)  # fmt: skip
"""Columns of a tidy row."""
CONFUSION = 200
"""Classes of the largest confusion matrix that is kept: one of a thousand has a million cells."""


@dataclass(frozen=True)
class Of:
    """What a number is of, where a task gives the same metric several times.

    Attributes:
        modality: What was classified, corrupted or removed.
        combination: Modalities that a probe sees, "a+b", or a direction, "a+b_to_c".
        label: A class.
        corruption: Its name.
        severity: 1..5, 0 without corruption; None where severities are averaged.
        rate: Share of samples that lack something.
    """

    modality: str | None = None
    combination: str | None = None
    label: str | None = None
    corruption: str | None = None
    severity: int | None = None
    rate: float | None = None


WHOLE = Of()
"""Of all that was evaluated."""


@dataclass(frozen=True)
class Row:
    """One number with its interval.

    Attributes:
        name: Unique in its evaluation.
        metric: What was measured, "top1" for instance.
        score: The number.
        of: What it is of.
    """

    name: str
    metric: str
    score: Score
    of: Of = WHOLE

    def record(self, task: str) -> dict[str, Any]:
        """A tidy row of JSON types, with `COLUMNS`; null where something is not finite."""
        of = asdict(self.of)
        of["class"] = of.pop("label")
        held = {"task": task, "metric": self.metric, **of, **score_record(self.score)}
        return {column: held[column] for column in COLUMNS}


def score_record(score: Score) -> dict[str, Any]:
    """{"value", "low", "high", "samples"} with null for what is not finite."""
    numbers = {"value": score.value, "low": score.low, "high": score.high}
    clean = {k: v if v is not None and math.isfinite(v) else None for k, v in numbers.items()}
    return {**clean, "samples": score.count}


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: Name -> value, in 0..1 where it is a rate.
        samples: Samples of the split.
        per_class: Class -> accuracy; empty where there is no classifier.
        rows: The metrics with their intervals.
        class_rows: The same for `per_class`.
        confusion: [C][C] counts, rows are true classes; None without a classifier, or with more
            than `CONFUSION` classes.
        classes: Names of its rows and columns.
        settings: Of the task, of JSON types.
    """

    metrics: dict[str, float]
    samples: int
    per_class: dict[str, float]
    rows: tuple[Row, ...] = ()
    class_rows: tuple[Row, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None
    classes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(self, task: str) -> dict[str, Any]:
        """Everything as JSON types, see `FORMAT`."""
        return {
            "format": FORMAT,
            "task": task,
            "samples": self.samples,
            "metrics": {row.name: score_record(row.score) for row in self.rows},
            "per_class": {row.name: score_record(row.score) for row in self.class_rows},
            "classes": list(self.classes),
            "confusion": None if self.confusion is None else [list(r) for r in self.confusion],
            "rows": [row.record(task) for row in (*self.rows, *self.class_rows)],
            "settings": dict(self.settings),
        }

    def with_settings(self, **settings: Any) -> Evaluation:
        """The same, saying how it was made."""
        return replace(self, settings={**self.settings, **settings})


class Table:
    """Collects the rows of an evaluation."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self.bootstrap = bootstrap
        self._rows: list[Row] = []
        self._classes: list[Row] = []
        self._confusion: tuple[tuple[int, ...], ...] | None = None
        self._names: tuple[str, ...] = ()

    def mean(self, name: str, metric: str, values: ArrayLike | Tensor, of: Of = WHOLE) -> None:
        """A mean over samples; no row where there is none."""
        self.add(name, metric, self.bootstrap.mean(metric, values), of)

    def add(self, name: str, metric: str, score: Score | None, of: Of = WHOLE) -> None:
        """A score as it is; no row for None."""
        if score is not None:
            self._rows.append(Row(name, metric, score, of))

    def number(self, name: str, value: float, of: Of = WHOLE) -> None:
        """A number whose samples are not at hand, or that is none of samples."""
        self.add(name, name.rpartition("/")[2], Score(name, value), of)

    def has(self, name: str) -> bool:
        """Whether there is a row of this name."""
        return any(row.name == name for row in self._rows)

    def by_class(
        self, guess: Tensor, label: Tensor, classes: Sequence[str], of: Of = WHOLE
    ) -> None:
        """Accuracy of each class that has samples, and the confusion matrix of at most
        `CONFUSION` classes.

        Args:
            guess, label: [N] classes.
            classes: Names.
            of: What was classified.
        """
        hits = guess == label
        for c, name in enumerate(classes):
            score = self.bootstrap.mean("accuracy", hits[label == c])
            if score is not None:
                self._classes.append(Row(name, "accuracy", score, replace(of, label=name)))
        if len(classes) > CONFUSION:
            return
        cells = torch.bincount(
            label.cpu() * len(classes) + guess.cpu(), minlength=len(classes) ** 2
        )
        table = cells.view(len(classes), len(classes)).tolist()
        self._confusion, self._names = tuple(tuple(row) for row in table), tuple(classes)

    def done(self, samples: int, **settings: Any) -> Evaluation:
        """The evaluation, of a split of `samples` samples."""
        return Evaluation(
            metrics={row.name: row.score.value for row in self._rows},
            samples=samples,
            per_class={row.name: row.score.value for row in self._classes},
            rows=tuple(self._rows),
            class_rows=tuple(self._classes),
            confusion=self._confusion,
            classes=self._names,
            settings=settings,
        )


def classified(
    table: Table, best: Tensor, label: Tensor, classes: Sequence[str], of: Of = WHOLE
) -> None:
    """Add "top1", "top5" and "mean_per_class", each class, and the confusion matrix.

    Args:
        best: [N, k] classes by rank, best first; k is 5, or all classes where there are fewer.
        label: [N] true classes, all known.
        classes: Names.
        of: What was classified.
    """
    hits = (best == label[:, None]).cpu()
    if not len(hits):
        return
    for k in (1, 5):
        table.mean(f"top{k}", f"top{k}", hits[:, :k].any(dim=1), of)
    balanced = table.bootstrap.balanced("mean_per_class", hits[:, 0], np.asarray(label.cpu()))
    table.add("mean_per_class", "mean_per_class", balanced, of)
    table.by_class(best[:, 0], label, classes, of)


def five_best(logits: Tensor) -> Tensor:
    """[N, min(5, C)] classes by their logits [N, C], best first; of equals the smaller number."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :5]
