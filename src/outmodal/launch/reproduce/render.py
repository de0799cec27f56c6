"""From cells to a table: means and deviations over seeds, beside the paper's figures."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outmodal.launch.reproduce.cells import Cell
from outmodal.launch.reproduce.table import Reported, Row, TableSpec

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
        metric: What the values are.
    """

    title: str
    columns: tuple[str, ...]
    values: dict[str, list[list[float] | None]]
    metric: str


def blocks(
    table: TableSpec,
    rows: Mapping[str, Row],
    cells: Sequence[Cell],
    found: Mapping[int, Mapping[str, float]],
) -> list[Block]:
    """Arrange results; combinations get a block for each set of modalities.

    Args:
        table, rows: The table, and which of its rows are there.
        cells: The plan.
        found: Number of a cell -> its metrics, for those that are done.
    """
    columns = list(dict.fromkeys(cell.modalities for cell in cells))
    if table.task != "combinations":
        metric = _metric(table, found)
        heads = tuple(f"M={len(c)}: {'+'.join(c)}" for c in columns)
        values = {
            key: [_values(rows[key], key, column, metric, cells, found) for column in columns]
            for key in rows
        }
        return [Block("", heads, values, metric)]
    return [_combination_block(table, rows, column, cells, found) for column in columns]


def _combination_block(
    table: TableSpec,
    rows: Mapping[str, Row],
    column: tuple[str, ...],
    cells: Sequence[Cell],
    found: Mapping[int, Mapping[str, float]],
) -> Block:
    own = [found[c.number] for c in cells if c.modalities == column and c.number in found]
    names = list(dict.fromkeys(name.rpartition("/")[0] for metrics in own for name in metrics))
    metric = _metric(table, found)
    values = {
        key: [_values(rows[key], key, column, f"{name}/{metric}", cells, found) for name in names]
        for key in rows
    }
    return Block(f"M={len(column)}: {'+'.join(column)}", tuple(names), values, metric)


def _metric(table: TableSpec, found: Mapping[int, Mapping[str, float]]) -> str:
    """The first of the table's metrics that results have."""
    names = {name for metrics in found.values() for name in metrics}
    ends = names | {name.rpartition("/")[2] for name in names}
    return next((m for m in table.metrics if m in ends), table.metrics[0])


def _values(
    row: Row,
    key: str,
    column: tuple[str, ...],
    metric: str,
    cells: Sequence[Cell],
    found: Mapping[int, Mapping[str, float]],
) -> list[float] | None:
    if row.modalities not in (None, len(column)):
        return None
    done = (found.get(c.number, {}) for c in cells if (c.row, c.modalities) == (key, column))
    return [metrics[metric] for metrics in done if metric in metrics]


def markdown(table: TableSpec, rows: Mapping[str, Row], parts: Sequence[Block]) -> str:
    """The table for people: mean and sample deviation over seeds; the best mean in bold."""
    lines = [f"## {table.title}", "", f"Paper: {table.source}.", ""]
    beside = table.reported if len(parts) == 1 == len(table.reported) else ()
    for block in parts:
        if block.title:
            lines += [f"### {block.title}", ""]
        lines += [*_grid(table, rows, block, beside), ""]
    for reported in () if beside else table.reported:
        lines += [f"### Paper: {reported.title}", "", *_paper_grid(rows, reported), ""]
    if table.reported:
        names = "; ".join(reported.title for reported in table.reported)
        lines += [
            f"The paper's figures are of other data ({names}): compare orders, not values.",
            "",
        ]
    return "\n".join(lines)


def _grid(
    table: TableSpec, rows: Mapping[str, Row], block: Block, beside: Sequence[Reported]
) -> list[str]:
    heads = ["method", *block.columns, *(f"paper: {c}" for part in beside for c in part.columns)]
    best = [_best(block, i) for i in range(len(block.columns))]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for key, row in rows.items():
        shown = [
            _shown(table, block.metric, values, key == best[i])
            for i, values in enumerate(block.values[key])
        ]
        printed = [c for part in beside for c in part.rows.get(key, (ABSENT,) * len(part.columns))]
        lines.append(_line([row.label, *shown, *printed]))
    return lines


def _paper_grid(rows: Mapping[str, Row], reported: Reported) -> list[str]:
    heads = ["method", *reported.columns]
    held = [(row.label, reported.rows[key]) for key, row in rows.items() if key in reported.rows]
    return [_line(heads), _line(["---"] * len(heads)), *(_line([a, *b]) for a, b in held)]


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
    sign = -1 if block.metric.rpartition("/")[2] in LOWER_IS_BETTER else 1
    means = {
        key: sign * statistics.fmean(values[column] or [])
        for key, values in block.values.items()
        if values[column]
    }
    finite = {key: mean for key, mean in means.items() if math.isfinite(mean)}
    return max(finite, key=lambda key: finite[key]) if len(finite) > 1 else None


def as_csv(cells: Sequence[Cell], found: Mapping[int, Mapping[str, float]]) -> str:
    """Every metric of every cell that is done, one a line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["cell", "row", "modalities", "m", "seed", "metric", "value"])
    for cell in cells:
        for name, value in found.get(cell.number, {}).items():
            place = [cell.number, cell.row, "+".join(cell.modalities), len(cell.modalities)]
            writer.writerow([*place, cell.seed, name, repr(value)])
    return buffer.getvalue()


def as_json(
    table: TableSpec, cells: Sequence[Cell], found: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    """The same with the paper's figures, in JSON values."""
    return {
        "title": table.title,
        "source": table.source,
        "reported": [part.model_dump(mode="json") for part in table.reported],
        "cells": [
            {
                "cell": cell.number,
                "row": cell.row,
                "label": table.rows[cell.row].label,
                "modalities": list(cell.modalities),
                "seed": cell.seed,
                "run": str(cell.folder),
                "metrics": dict(found[cell.number]) if cell.number in found else None,
            }
            for cell in cells
        ],
    }
