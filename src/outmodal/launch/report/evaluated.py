"""The page's section on what `outmodal eval` measured, runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outmodal.launch.report import figures
from outmodal.launch.report.charts import Chart, Series
from outmodal.launch.report.evaluations import Evaluated, Row, series
from outmodal.launch.report.markup import Markup, join, table, tag
from outmodal.launch.report.reading import RunRecord

_LONG = 24
"""Rows from which a table is folded."""

Found = Sequence[tuple[RunRecord, Evaluated]]


def evaluated(runs: Sequence[RunRecord]) -> Markup:
    """A table for each task, data set and split, a column a run; curves where rates or severities
    were swept; nothing where nothing was evaluated."""
    groups: dict[tuple[str, str, str], list[tuple[RunRecord, Evaluated]]] = {}
    for run in runs:
        for one in run.evaluations:
            groups.setdefault((one.task, one.data, one.split), []).append((run, one))
    parts = [part for found in groups.values() for part in _task(found)]
    return join([*parts, *_refused(runs)])


def _task(found: Found) -> list[Markup]:
    first = found[0][1]
    head = tag("h3", f"{first.task}: split '{first.split}' of {first.data}")
    return [head, *_origin(found), figures.charts(_swept(found)), _table(found), *_classes(found)]


def _origin(found: Found) -> list[Markup]:
    """Of which checkpoint, with which settings; a warning where the run has a newer one."""
    parts = []
    for run, one in found:
        settings = ", ".join(_settings(one.settings))
        text = f"{run.name}: {one.checkpoint or 'its newest checkpoint'}, {one.samples} samples"
        parts.append(tag("p", f"{text}; {settings}." if settings else f"{text}.", class_="hint"))
        if one.checkpoint and run.checkpoints and one.checkpoint != run.checkpoints[-1]:
            note = f"{run.name} has {run.checkpoints[-1]} by now: repeat `outmodal eval` for it."
            parts.append(tag("p", note, class_="note"))
    return parts


def _settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys with their values; those of sections have dots, as on the command line."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if value:
                yield f"{prefix}{key} {' '.join(map(str, value))}"
        elif value not in (None, ""):
            yield f"{prefix}{key} {value}"


def _table(found: Found) -> Markup:
    task, split = found[0][1].task, found[0][1].split
    values = [{row.name(): row for row in one.rows} for _, one in found]
    names = list(dict.fromkeys(name for column in values for name in column))
    rows = [[name, *[_cell(column.get(name)) for column in values]] for name in names]
    caption = f"{task}, split '{split}'"
    inner = table(caption, ["Metric", *[run.name for run, _ in found]], rows, class_="numbers")
    if len(rows) < _LONG:
        return inner
    return tag("details", tag("summary", f"{caption}: {len(rows)} numbers"), inner)


def _classes(found: Found) -> list[Markup]:
    held = [(run, one.per_class) for run, one in found if one.per_class]
    if not held:
        return []
    names = list(dict.fromkeys(name for _, classes in held for name in classes))
    rows = [[name, *[_cell(classes.get(name)) for _, classes in held]] for name in names]
    head = ["Class", *[run.name for run, _ in held]]
    inner = table("Accuracy of each class", head, rows, class_="numbers")
    return [tag("details", tag("summary", f"{found[0][1].task}: classes"), inner)]


def _swept(found: Found) -> list[Chart]:
    """Value over the rate that is missing, or over a corruption's severity."""
    charts: dict[str, list[Series]] = {}
    for run, one in found:
        for over in ("rate", "severity"):
            for metric, lines in series(one, over).items():
                own = charts.setdefault(f"{metric} over {over}", [])
                for name, points in lines.items():
                    label = f"{run.name}: {name}" if len(found) > 1 else name
                    own.append(Series(label, points))
    first = found[0][1]
    return [
        Chart(
            f"{first.file}-{title}",
            f"{first.task}: {title}",
            "Intervals are in the table.",
            lines,
            x=title.rpartition(" ")[2],
        )
        for title, lines in charts.items()
    ]


def _refused(runs: Sequence[RunRecord]) -> list[Markup]:
    return [
        tag(
            "p",
            f"{run.name}: eval/{name} is left out: it is half written, or no result of "
            "`outmodal eval`.",
            class_="note",
        )
        for run in runs
        for name in run.refused
    ]


def _cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return "–"
    if row.low is None or row.high is None:
        return f"{row.value:.4f}"
    return f"{row.value:.4f} [{row.low:.4f}, {row.high:.4f}]"
