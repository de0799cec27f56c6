"""From cells to a table: means and deviations over seeds, beside the paper's figures."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outmodal.launch.reproduce.cells import Plan
from outmodal.launch.reproduce.columns import Column
from outmodal.launch.reproduce.preparations import Encoders
from outmodal.launch.reproduce.table import HOLE, Head, Reported, Row, TableSpec

ABSENT = "-"
LOWER_IS_BETTER = ("mse",)
"""Last parts of the metrics of which the smallest is the best."""


@dataclass(frozen=True)
class Block:
    """A part of a table: rows by columns, each with a value for every seed that is done.

    Attributes:
        title: What it is of.
        columns: Heads.
        values: Row key -> for each column the values, in results' own unit; None where the row is
            not defined.
        metrics: What the values of each column are.
    """

    title: str
    columns: tuple[str, ...]
    values: dict[str, list[list[float] | None]]
    metrics: tuple[str, ...]


Found = Mapping[int, Mapping[str, float]]
"""Number of a cell -> its metrics, for those that are done."""


def blocks(table: TableSpec, plan: Plan, found: Found) -> list[Block]:
    """Arrange results; combinations and missing modalities get a block for each column."""
    if table.task == "combinations":
        return [_combination_block(table, plan, column, found) for column in plan.columns]
    if table.task == "missing":
        return [_head_block(table, plan, (column,), column.head, found) for column in plan.columns]
    if table.shown:
        return [_head_block(table, plan, plan.columns, "", found)]
    metric = _metric(table, found)
    heads = tuple(column.head for column in plan.columns)
    values = {
        key: [_values(plan, key, column, (metric,), found) for column in plan.columns]
        for key in plan.rows
    }
    return [Block("", heads, values, (metric,) * len(heads))]


def _head_block(
    table: TableSpec, plan: Plan, columns: Sequence[Column], title: str, found: Found
) -> Block:
    """A block with all heads of the table for each of the columns."""
    places = [(column, head) for column in columns for head in _heads(table, column)]
    prefixed = len(columns) > 1 or not title
    several = len(table.shown) > 1
    names = tuple(
        head.label if not prefixed else f"{column.head}, {head.label}" if several else column.head
        for column, head in places
    )
    values = {
        key: [_values(plan, key, column, head.metrics, found) for column, head in places]
        for key in plan.rows
    }
    had = {name for metrics in found.values() for name in metrics}
    metrics = tuple(
        next((name for name in head.metrics if name in had), head.metrics[0]) for _, head in places
    )
    return Block(title, names, values, metrics)


def _heads(table: TableSpec, column: Column) -> list[Head]:
    """The heads of a column, with one for each of its modalities where they name them."""
    made = []
    for head in table.shown:
        several = HOLE in "".join((head.label, *head.metrics))
        for m in column.modalities if several else ("",):
            metrics = tuple(name.replace(HOLE, m) for name in head.metrics)
            made.append(Head(label=head.label.replace(HOLE, m), metrics=metrics))
    return made


def _combination_block(table: TableSpec, plan: Plan, column: Column, found: Found) -> Block:
    own = [found[c.number] for c in plan.cells if c.column == column and c.number in found]
    names = list(dict.fromkeys(name.rpartition("/")[0] for metrics in own for name in metrics))
    metric = _metric(table, found)
    values = {
        key: [_values(plan, key, column, (f"{name}/{metric}",), found) for name in names]
        for key in plan.rows
    }
    return Block(column.head, tuple(names), values, (metric,) * len(names))


def _metric(table: TableSpec, found: Found) -> str:
    """The first of the table's metrics that results have."""
    names = {name for metrics in found.values() for name in metrics}
    ends = names | {name.rpartition("/")[2] for name in names}
    return next((m for m in table.metrics if m in ends), table.metrics[0])


def _values(
    plan: Plan, key: str, column: Column, metrics: Sequence[str], found: Found
) -> list[float] | None:
    """A value for each seed that is done; None where there is none to come."""
    cells = [c for c in plan.cells if (c.row, c.column) == (key, column)]
    if not cells:
        return None
    done = [found[c.number] for c in cells if c.number in found]
    values = [
        next(result[name] for name in metrics if name in result)
        for result in done
        if any(name in result for name in metrics)
    ]
    return None if done and not values else values


def markdown(table: TableSpec, plan: Plan, parts: Sequence[Block]) -> str:
    """The table for people: mean and sample deviation over seeds; the best mean in bold."""
    lines = [f"## {table.title}", "", f"Paper: {table.source}.", ""]
    beside = table.reported if len(parts) == 1 == len(table.reported) else ()
    for block in parts:
        if block.title:
            lines += [f"### {block.title}", ""]
        lines += [*_grid(table, plan.rows, block, beside), ""]
    for reported in () if beside else table.reported:
        lines += [f"### Paper: {reported.title}", "", *_paper_grid(plan.rows, reported), ""]
    lines += _notes(table, plan)
    return "\n".join(lines)


def _notes(table: TableSpec, plan: Plan) -> list[str]:
    """What a reader has to know."""
    notes = [" ".join(table.note.split())] if table.note else []
    reasons: dict[str, list[str]] = {}
    for (key, column), why in plan.absent.items():
        if why:
            reasons.setdefault(f"{plan.rows[key].label}: {why}", []).append(column.head)
    notes += [f'"{ABSENT}" in {", ".join(heads)}: {why}.' for why, heads in reasons.items()]
    config = plan.cells[0].config
    notes.append(
        f"Every run: {config.engine.epochs} epochs, batch {config.data.batch}, {config.optim.name} "
        f"with rate {config.optim.lr:g}."
    )
    made = [part.what for part in plan.needs if isinstance(part, Encoders)]
    if made:
        notes.append(f"Encoders that were trained here first, on the same data: {'; '.join(made)}.")
    if table.reported:
        names = "; ".join(reported.title for reported in table.reported)
        notes.append(
            f"The paper's figures are of other data ({names}): compare orders, not values."
        )
    if any("⚠" in f for part in table.reported for row in part.rows.values() for f in row):
        notes.append("⚠: doubtful in the paper itself.")
    return [line for note in notes for line in (note, "")]


def _grid(
    table: TableSpec, rows: Mapping[str, Row], block: Block, beside: Sequence[Reported]
) -> list[str]:
    heads = ["method", *block.columns, *(f"paper: {c}" for part in beside for c in part.columns)]
    best = [_best(block, i) for i in range(len(block.columns))]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for key, row in rows.items():
        shown = [
            _shown(table, block.metrics[i], values, key == best[i])
            for i, values in enumerate(block.values[key])
        ]
        printed = [
            c for part in beside for c in _figures(part, key, row) or (ABSENT,) * len(part.columns)
        ]
        lines.append(_line([row.label, *shown, *printed]))
    return lines


def _paper_grid(rows: Mapping[str, Row], reported: Reported) -> list[str]:
    heads = ["method", *reported.columns]
    held = [
        (_paper_label(reported, key, row), _figures(reported, key, row))
        for key, row in rows.items()
    ]
    lines = [_line([label, *figures]) for label, figures in held if figures]
    return [_line(heads), _line(["---"] * len(heads)), *dict.fromkeys(lines)]


def _paper_label(reported: Reported, key: str, row: Row) -> str:
    """A row's label; without the modality where the paper has one line for all of them."""
    if not row.of or key in reported.rows:
        return row.label
    return " ".join(row.label.replace(row.of, "").split()).rstrip(" :,(-")


def _figures(reported: Reported, key: str, row: Row) -> tuple[str, ...]:
    """The paper's figures of a row, or of the row that it was made of; () where there are none."""
    base = key.removesuffix(f"-{row.of}") if row.of else key
    return reported.rows.get(key) or reported.rows.get(base) or ()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(table: TableSpec, metric: str, values: list[float] | None, best: bool) -> str:
    if values is None:
        return ABSENT
    if not values:
        return "?"
    raw = metric.rpartition("/")[2] in LOWER_IS_BETTER
    scale, digits = (1.0, 4) if raw else (table.scale, table.digits)
    text = f"{statistics.fmean(values) * scale:.{digits}f}"
    text = f"**{text}**" if best else text
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values) * scale:.{digits}f}"


def _best(block: Block, column: int) -> str | None:
    """Key of the row with the best mean, where there are several to compare."""
    sign = -1 if block.metrics[column].rpartition("/")[2] in LOWER_IS_BETTER else 1
    means = {
        key: sign * statistics.fmean(values[column] or [])
        for key, values in block.values.items()
        if values[column]
    }
    finite = {key: mean for key, mean in means.items() if math.isfinite(mean)}
    return max(finite, key=lambda key: finite[key]) if len(finite) > 1 else None


def as_csv(plan: Plan, found: Found) -> str:
    """Every metric of every cell that is done, one a line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["cell", "row", "modalities", "m", "learned", "seed", "metric", "value"])
    for cell in plan.cells:
        for name, value in found.get(cell.number, {}).items():
            place = [cell.number, cell.row, "+".join(cell.modalities), len(cell.modalities)]
            writer.writerow([*place, cell.column.learned, cell.seed, name, repr(value)])
    return buffer.getvalue()


def as_json(table: TableSpec, plan: Plan, found: Found) -> dict[str, Any]:
    """The same with the paper's figures, in JSON values."""
    return {
        "title": table.title,
        "source": table.source,
        "reported": [part.model_dump(mode="json") for part in table.reported],
        "cells": [
            {
                "cell": cell.number,
                "row": cell.row,
                "label": plan.rows[cell.row].label,
                "modalities": list(cell.modalities),
                "learned": cell.column.learned,
                "seed": cell.seed,
                "run": str(cell.folder),
                "metrics": dict(found[cell.number]) if cell.number in found else None,
            }
            for cell in plan.cells
        ],
    }
