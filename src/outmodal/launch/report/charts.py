"""Curves of runs, sorted into charts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from outmodal.launch.report.board import Curve
from outmodal.launch.report.reading import RunRecord

_DISCREPANCY = (
    ("mmd/", "MMD", "Maximum mean discrepancy: 0 where two modalities have one distribution."),
    ("modality_gap/", "Modality gap", "Distance between the means of unit vectors, 0 to 2."),
    (
        "judge_accuracy/",
        "Accuracy of the known modalities' heads",
        "On the unknown modality. Each was trained on what its connection makes of a known one.",
    ),
)
_APART = tuple(prefix for prefix, _, _ in _DISCREPANCY)

POINTS = 800
"""Most points of a curve on the page."""

_TOP = re.compile(r"top\d+")
_RATE = re.compile(r"accuracy|top\d+|zero_shot|^r\d+_|map_|rate|purity|share")


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Curve


@dataclass(frozen=True)
class Chart:
    """One figure of lines.

    Attributes:
        key: Unique on the page.
        title: Heading.
        note: What it shows, for people who do not know the method.
        series: Its lines, at least one.
        percent: Values are shares of 1 and are shown as per cent.
        x: What the points are over.
    """

    key: str
    title: str
    note: str
    series: Sequence[Series]
    percent: bool = False
    x: str = "step"

    def json(self) -> dict[str, Any]:
        """What the page's script draws."""
        series = [{"name": s.name, "points": thinned(s.points, POINTS)} for s in self.series]
        return {"title": self.title, "x": self.x, "percent": self.percent, "series": series}


def curve(run: RunRecord, split: str, name: str) -> Curve:
    """One metric of a run on one split."""
    return [(m.step, m.values[name]) for m in run.lines if m.split == split and name in m.values]


def names(runs: Iterable[RunRecord], split: str) -> list[str]:
    """The metrics of a split, in the order of the alphabet."""
    return sorted({n for run in runs for m in run.lines if m.split == split for n in m.values})


def thinned(points: Curve, most: int) -> Curve:
    """At most about `most` points of a curve: the ends, and the lowest and highest of each stretch.
    Peaks stay, unlike in a mean."""
    if len(points) <= most:
        return list(points)
    width = len(points) / (most // 2)
    kept = {0, len(points) - 1}
    for n in range(most // 2):
        stretch = range(int(n * width), min(len(points), int((n + 1) * width)))
        kept |= _extremes(points, stretch)
    return [points[i] for i in sorted(kept)]


def _extremes(points: Curve, stretch: range) -> set[int]:
    finite = [(value, i) for i in stretch if (value := points[i][1]) is not None]
    missing = [i for i in stretch if points[i][1] is None][:1]
    return {min(finite)[1], max(finite)[1], *missing} if finite else set(missing)


class Charts:
    """Makes charts of the same metrics of several runs; charts without a line are left out."""

    def __init__(self, runs: Sequence[RunRecord]) -> None:
        self._runs = runs

    def of(
        self,
        key: str,
        title: str,
        note: str,
        wanted: Sequence[tuple[str, str]],
        *,
        label: Callable[[str], str] = str,
    ) -> list[Chart]:
        """One chart of (split, metric) pairs, or none."""
        splits = {split for split, _ in wanted}
        series = []
        for run in self._runs:
            for split, name in wanted:
                points = curve(run, split, name)
                parts = [label(name)] if len(wanted) > 1 else []
                parts += [f"({split})"] if len(splits) > 1 else []
                if points:
                    series.append(Series(self._named(run, " ".join(parts), title), points))
        percent = all(
            _RATE.search(name.rpartition("/")[2]) or name.startswith("judge_accuracy/")
            for _, name in wanted
        )
        return [Chart(key, title, note, series, percent)] if series else []

    def board(self, key: str, title: str, note: str, tags: Sequence[str]) -> list[Chart]:
        """One chart of TensorBoard's tags, or none."""
        series = [
            Series(self._named(run, tag.partition("/")[2] if len(tags) > 1 else "", title), points)
            for run in self._runs
            for tag in tags
            if (points := run.board.get(tag))
        ]
        return [Chart(key, title, note, series)] if series else []

    def _named(self, run: RunRecord, what: str, title: str) -> str:
        parts = [run.name] if len(self._runs) > 1 else []
        return ": ".join([*parts, *([what] if what else [])]) or title


def training(runs: Sequence[RunRecord]) -> list[Chart]:
    """Loss, its terms, and the rest of what training logs."""
    charts, known = Charts(runs), names(runs, "train")
    terms = [n for n in known if n.startswith("loss/")]
    found = charts.of(
        "loss", "Training loss", "The whole loss of logged steps.", _on("train", ["loss"])
    )
    found += charts.of(
        "terms",
        "Terms of the loss",
        "Each term before its weight.",
        _on("train", terms),
        label=lambda name: name.removeprefix("loss/"),
    )
    for name in known:
        if name != "loss" and name not in terms:
            found += charts.of(f"train-{name}", _title(name), "Logged steps.", _on("train", [name]))
    return found


def evaluation(runs: Sequence[RunRecord]) -> list[Chart]:
    """Metrics on the evaluation split, without those of Figure 6."""
    groups: dict[str, list[str]] = {}
    for name in names(runs, "eval"):
        if not name.startswith("before/") and not _agreement(name):
            last = name.rpartition("/")[2]
            groups.setdefault("top-k accuracy" if _TOP.fullmatch(last) else last, []).append(name)
    charts = Charts(runs)
    return [
        chart
        for group, members in groups.items()
        for chart in charts.of(
            f"eval-{group}",
            _title(group),
            "On the evaluation split.",
            _on("eval", members),
            label=lambda name: name if _TOP.search(name) else name.rpartition("/")[0] or name,
        )
    ]


def discrepancy(runs: Sequence[RunRecord]) -> list[Chart]:
    """COX's Figure 5: how far modalities lie apart over training, and how well heads that were
    trained on the mapped known modalities tell the classes of the unknown one."""
    charts, found = Charts(runs), []
    for split, where in (("diagnostics", "evaluation split"), ("epoch", "training split")):
        for prefix, title, note in _DISCREPANCY:
            members = [n for n in names(runs, split) if n.startswith(prefix)]
            found += charts.of(
                f"{split}-{prefix}",
                f"{title} over training ({where})",
                note,
                _on(split, members),
                label=lambda name: name.partition("/")[2],
            )
    return found


def agreement(runs: Sequence[RunRecord]) -> list[Chart]:
    """COX's Figure 6: accuracy where the judges agree, and where they do not."""
    charts, found = Charts(runs), []
    for split, where in (("eval", "evaluation split"), ("epoch", "unlabelled training samples")):
        found += charts.of(
            f"agreement-{split}",
            f"Agreement and disagreement, {where}",
            "Accuracy of the learner's classifier where the known modalities' heads agree and "
            "where they do not, and how often they agree.",
            _on(split, [n for n in names(runs, split) if _agreement(n)]),
            label=lambda name: name.replace("accuracy_", "accuracy on ").replace("_", " "),
        )
    return found


def refreshes(runs: Sequence[RunRecord]) -> list[Chart]:
    """What else a method reports between epochs, a chart for each family of names."""
    groups: dict[str, list[str]] = {}
    for name in names(runs, "epoch"):
        if not _agreement(name) and not name.startswith(_APART):
            group = name.partition("/")[0]
            alone = group == name and _RATE.search(name)
            groups.setdefault("shares" if alone else group, []).append(name)
    charts = Charts(runs)
    return [
        chart
        for group, members in groups.items()
        for chart in charts.of(
            f"epoch-{group}",
            _title(group),
            "Between epochs, on the training split.",
            _on("epoch", members),
            label=lambda name: name.partition("/")[2] or name,
        )
    ]


def _on(split: str, metrics: Iterable[str]) -> list[tuple[str, str]]:
    return [(split, name) for name in metrics]


def _agreement(name: str) -> bool:
    return name in ("agreement_rate", "accuracy_agreement", "accuracy_disagreement")


def _title(name: str) -> str:
    shown = {"lr": "Learning rate", "grad_norm": "Norm of the gradient"}.get(name, name)
    return shown[:1].upper() + shown[1:].replace("_", " ")
