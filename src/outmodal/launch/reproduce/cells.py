"""From a table and a data set to cells: one training run for each row, column and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.launch.config import RunConfig, adapted, recipe_names, set_keys
from outmodal.launch.reproduce.learners import learner_for
from outmodal.launch.reproduce.table import Row, TableSpec

FEWEST, MOST = 3, 6
"""Numbers of modalities in the columns that are made where none are named."""

_GENERIC = "six-view-m6"  # optimizer and length for data sets that have no recipe of their own
_LOCAL = {"data.workers": 0, "engine.threads": 1}  # a cell has one process of one thread


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        number: Its place in the plan, from 0.
        row: Row key.
        modalities: Modalities of its column.
        seed: Seed of the run and of its probes.
        folder: The run's folder.
        config: The whole configuration.
    """

    number: int
    row: str
    modalities: tuple[str, ...]
    seed: int
    folder: Path
    config: RunConfig


@dataclass(frozen=True)
class Request:
    """What the user asks for beside the table.

    Attributes:
        out: Folder of the table.
        rows: Rows of the table to fill.
        columns: Modalities of each column; () makes columns of 3 to 6.
        seeds: Number of seeds, from 0.
        recipe: Learners, optimizer and length of all runs; "" chooses by the data set's name.
        changes: Dotted keys of the recipe -> values, for all runs.
    """

    out: Path
    rows: Mapping[str, Row]
    columns: Sequence[tuple[str, ...]] = ()
    seeds: int = 3
    recipe: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


def plan_cells(table: TableSpec, dataset: Dataset, request: Request) -> list[Cell]:
    """All cells: seeds outermost, so that a table fills from its first seed on.

    Raises:
        UserError: A column names fewer than two modalities or unknown ones, the data set has one
            modality only, or no row is defined for any column.
    """
    recipe = request.recipe or recipe_for(dataset)
    columns = list(request.columns) or default_columns(dataset, recipe)
    for column in columns:
        _check_column(dataset, column)
    places = [
        (seed, column, key)
        for seed in range(request.seeds)
        for column in columns
        for key, row in request.rows.items()
        if row.modalities in (None, len(column))
    ]
    if not places:
        raise UserError(
            "no row of the table is defined for these columns: name others with --modalities, or "
            "other rows with --objectives"
        )
    base = {
        (column, key): _config(table, dataset, recipe, column, request.rows[key])
        for _, column, key in places
    }
    return [
        _cell(number, key, column, seed, base[column, key], request)
        for number, (seed, column, key) in enumerate(places)
    ]


def recipe_for(dataset: Dataset) -> str:
    """The recipe with the most modalities that is named after the data set, "six-view-m6"; a
    generic one where there is none."""
    stem = f"{dataset.manifest.name.removesuffix('-sample')}-m"
    own = [n for n in recipe_names() if n.startswith(stem) and n.removeprefix(stem).isdigit()]
    return max(own, key=lambda n: int(n.removeprefix(stem)), default=_GENERIC)


def default_columns(dataset: Dataset, recipe: str) -> list[tuple[str, ...]]:
    """The first 3, 4, ... modalities of the data set, in the order of the recipe's learners.

    Raises:
        UserError: The data set has one modality only.
    """
    known = list(dataset.manifest.modalities)
    if len(known) < 2:
        raise UserError(
            f"{dataset.root} has one modality ({', '.join(known)}), and a table about alignment "
            "needs two or more: build a data set with others beside it"
        )
    first = [cfg.modality for cfg in adapted(recipe, {}, recipe).learners]
    order = [m for m in first if m in known] + [m for m in known if m not in first]
    sizes = range(min(FEWEST, len(order)), min(MOST, len(order)) + 1)
    return [tuple(order[:size]) for size in sizes]


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Dotted keys and values of "KEY=VALUE" texts.

    Raises:
        UserError: A text has no "=", or sets a key that a table decides itself.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, found, value = text.partition("=")
        if not found:
            raise UserError(f"--set {text}: give KEY=VALUE, as in --set optim.lr=1e-3")
        if key.split(".")[0] not in ("optim", "engine", "data") or key == "data.path":
            raise UserError(
                f"--set {key}: a table sets keys of optim, engine and data (other than data.path) "
                "only, the same for all of its rows; for others write a recipe, and name it with "
                "--recipe"
            )
        changes[key] = yaml.safe_load(value)
    return changes


def _check_column(dataset: Dataset, column: Sequence[str]) -> None:
    for modality in column:
        dataset.modality(modality)
    if len(set(column)) < 2 or len(set(column)) < len(column):
        raise UserError(
            f"--modalities {' '.join(column)}: name two or more different modalities a column; "
            f"{dataset.root} has {', '.join(dataset.manifest.modalities)}"
        )


def _config(
    table: TableSpec, dataset: Dataset, recipe: str, column: Sequence[str], row: Row
) -> RunConfig:
    own = adapted(recipe, {}, recipe)
    brought = {cfg.modality: cfg.model_dump(mode="json") for cfg in own.learners}
    specs = dataset.manifest.modalities
    method = _over(table.method, row.method)
    if "modalities" in type(own.method).model_fields:
        method = {**method, "modalities": list(column)}
    sections = {
        "data": {"path": str(dataset.root.absolute())},
        "learners": [brought.get(m) or learner_for(m, specs[m]) for m in column],
        "method": method,
    }
    return adapted(recipe, sections, f"row '{row.label}'")


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Row keys over the table's; a row's `name` keeps the table's other keys."""
    nested = {
        key: _over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **nested}


def _cell(
    number: int,
    key: str,
    column: tuple[str, ...],
    seed: int,
    base: RunConfig,
    request: Request,
) -> Cell:
    folder = (request.out / "cells" / key / "+".join(column) / f"seed-{seed}").absolute()
    changes = {**request.changes, **_LOCAL, "seed": seed, "out": str(folder)}
    return Cell(number, key, column, seed, folder, set_keys(base, changes))
