"""From a table and a data set to cells: one training run for each row, column and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.launch.config import RunConfig, adapted, recipe_names, set_keys
from outmodal.launch.reproduce.columns import Column, check_pairs, make_columns
from outmodal.launch.reproduce.feeds import Feed, Supply, column_feed, own_feed
from outmodal.launch.reproduce.learners import with_views
from outmodal.launch.reproduce.preparations import Preparation
from outmodal.launch.reproduce.table import Row, TableSpec, Task, each_modality
from outmodal.models.perceptors import PerceptorConfig
from outmodal.train.methods import AnyMethodConfig

_GENERIC = "six-view-m6"  # optimizer and length for data sets that have no recipe of their own
_LOCAL = {"data.workers": 0, "engine.threads": 1}  # a cell has one process of one thread


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        number: Its place in the plan, from 0.
        row: Row key.
        column: Its column.
        seed: Seed of the run and of its probes.
        folder: The run's folder.
        config: The whole configuration.
        task: Its evaluation.
        needs: What must be made before.
    """

    number: int
    row: str
    column: Column
    seed: int
    folder: Path
    config: RunConfig
    task: Task
    needs: tuple[Preparation, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of its column."""
        return self.column.modalities


@dataclass(frozen=True)
class Request:
    """What the user asks for beside the table.

    Attributes:
        out: Folder of the table.
        rows: Rows of the table to fill.
        columns: Sets of modalities to make columns of; () is the data set's.
        seeds: Number of seeds, from 0.
        recipe: Learners, optimizer and length of all runs; "" chooses by the data set's name.
        changes: Dotted keys of the recipe -> values, for all runs.
        perceptors: Frozen encoders by modality; None takes its vectors as they are.
        prepare_epochs: Length of the encoders that are trained where none is named.
    """

    out: Path
    rows: Mapping[str, Row]
    columns: Sequence[tuple[str, ...]] = ()
    seeds: int = 3
    recipe: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    perceptors: Mapping[str, PerceptorConfig | None] = field(default_factory=dict)
    prepare_epochs: int = 10


@dataclass(frozen=True)
class Plan:
    """What fills a table.

    Attributes:
        rows: Row key -> row, with one for each modality where a row is made so.
        columns: Its columns.
        cells: The runs, seeds outermost, so that a table fills from its first seed on.
        absent: (row key, column) -> why there is no run; "" where the row says it itself.
    """

    rows: Mapping[str, Row]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    absent: Mapping[tuple[str, Column], str]

    @property
    def needs(self) -> tuple[Preparation, ...]:
        """What must be made before any cell, earlier parts first."""
        return tuple(dict.fromkeys(part for cell in self.cells for part in cell.needs))


def plan_table(table: TableSpec, dataset: Dataset, request: Request) -> Plan:
    """All cells.

    Raises:
        UserError: The data set, or what the user names, has not the modalities that the table
            needs, or no sample that holds them together; or no row is defined for any column.
    """
    recipe = request.recipe or recipe_for(dataset)
    columns = make_columns(table, dataset, recipe, request.columns)
    base = set_keys(adapted(recipe, {}, recipe), {**request.changes, **_LOCAL})
    if table.pairs:
        check_pairs(dataset, base.data.train_split, columns)
    every = tuple(dict.fromkeys(m for column in columns for m in column.modalities))
    rows = each_modality(request.rows, every)
    supply = Supply(dataset, base, request.out, request.perceptors, request.prepare_epochs)
    runs: dict[tuple[str, Column], tuple[RunConfig, Feed]] = {}
    absent: dict[tuple[str, Column], str] = {}
    for column in columns:
        feed = column_feed(table, column, supply)
        for key, row in rows.items():
            found = _feed(row, column, feed, supply)
            if isinstance(found, str):
                absent[key, column] = found
            else:
                config = _config(table, recipe, column, row, found, supply)
                runs[key, column] = (set_keys(config, _lengths(row, base)), found)
    if not runs:
        raise UserError(
            "no row of the table is defined for these columns: name others with --modalities, or "
            "other rows with --objectives"
        )
    places = [(seed, column, key) for seed in range(request.seeds) for key, column in runs]
    places.sort(key=lambda place: (place[0], columns.index(place[1])))
    cells = tuple(
        _cell(number, key, column, seed, *runs[key, column], request, rows[key].task or table.task)
        for number, (seed, column, key) in enumerate(places)
    )
    return Plan(rows, tuple(columns), cells, absent)


def recipe_for(dataset: Dataset) -> str:
    """The recipe with the most modalities that is named after the data set, "six-view-m6"; a
    generic one where there is none."""
    stem = f"{dataset.manifest.name.removesuffix('-sample')}-m"
    own = [n for n in recipe_names() if n.startswith(stem) and n.removeprefix(stem).isdigit()]
    return max(own, key=lambda n: int(n.removeprefix(stem)), default=_GENERIC)


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


def _feed(row: Row, column: Column, feed: Feed, supply: Supply) -> Feed | str:
    """What a row reads in a column, or why it is not defined there."""
    if row.modalities not in (None, len(column.modalities)):
        return ""
    if row.of and row.of not in column.modalities:
        return ""
    if row.kinds and supply.dataset.modality(column.learned).kind not in row.kinds:
        return f"for a modality of kind {' or '.join(row.kinds)} only"
    return own_feed(column, supply) if row.own else feed


def _config(
    table: TableSpec, recipe: str, column: Column, row: Row, feed: Feed, supply: Supply
) -> RunConfig:
    learners = [] if row.own else [supply.learner(m) for m in _learned(column)]
    method = _over(table.method, row.method)
    known = _keys_of(str(method.get("name", supply.base.method.name)))
    method = {**{k: v for k, v in feed.keys.items() if k in known}, **method}
    sections = {
        "data": {"path": feed.path},
        "learners": [with_views(cfg) for cfg in learners] if table.views else learners,
        "method": method,
    }
    return adapted(recipe, sections, f"row '{row.label}'")


def _learned(column: Column) -> tuple[str, ...]:
    return (column.learned,) if column.learned else column.modalities


def _keys_of(method: str) -> frozenset[str]:
    """Keys that a method has."""
    for kind in get_args(AnyMethodConfig):
        if kind.model_fields["name"].default == method:
            return frozenset(kind.model_fields)
    return frozenset()  # the configuration says what is wrong with the name


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Row keys over the table's; a row's `name` keeps the table's other keys."""
    nested = {
        key: _over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **nested}


def _lengths(row: Row, base: RunConfig) -> dict[str, int]:
    """Keys that count epochs, for runs of this length."""
    total = base.engine.epochs
    return {
        f"method.{key}": min(max(1, round(share * total)), max(0, total - 1))
        for key, share in row.epochs.items()
    }


def _cell(
    number: int,
    key: str,
    column: Column,
    seed: int,
    config: RunConfig,
    feed: Feed,
    request: Request,
    task: Task,
) -> Cell:
    folder = (request.out / "cells" / key / column.name / f"seed-{seed}").absolute()
    changes = {**request.changes, **_LOCAL, "seed": seed, "out": str(folder)}
    own = set_keys(config, changes)
    return Cell(number, key, column, seed, folder, own, task, feed.needs)
