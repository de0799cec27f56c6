"""What a table is: rows that differ in the method's keys only, one measure, the paper's figures.

A table is a YAML file in `tables/`; `base: OTHER` starts from another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from outmodal.base import Config
from outmodal.errors import UserError, nearest
from outmodal.launch.recipe import explain, read_recipe

Task = Literal["probe", "combinations", "retrieve"]


class Row(Config):
    """One line of the table.

    Attributes:
        label: What the table calls it.
        method: Keys of the recipe's `method` section that make it; they override the table's.
            Nothing else of a run can be set, so that all rows have the same budget.
        modalities: The only number of modalities it is defined for; None is any.
    """

    label: str
    method: dict[str, Any] = Field(default_factory=dict)
    modalities: int | None = Field(default=None, ge=2)


class Reported(Config):
    """A block of the paper's figures.

    Attributes:
        title: What it is of.
        columns: Heads of its columns.
        rows: Row key -> figures as they are printed.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]


class TableSpec(Config):
    """A table.

    Attributes:
        title: Its heading.
        source: The paper, with authors and number.
        task: The evaluation of `outmodal eval` that fills it.
        metrics: Names of results; a cell shows the first that its evaluation has.
        scale: What results are multiplied by: 100 for percent.
        digits: Digits after the point.
        method: Keys of the recipe's `method` section for all rows.
        rows: Row key -> row. A row of the same key in two tables is the same run.
        reported: The paper's figures.
    """

    title: str
    source: str
    task: Task
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    scale: float = 100.0
    digits: int = Field(default=2, ge=0)
    method: dict[str, Any] = Field(default_factory=dict)
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    reported: tuple[Reported, ...] = ()


def table_names() -> list[str]:
    """Names of the tables that can be reproduced."""
    return sorted(p.stem for p in _folder().glob("*.yaml"))


def load_table(name: str) -> TableSpec:
    """Read a table.

    Raises:
        UserError: There is none of this name; names the nearest.
    """
    recipe = read_recipe(_path(name), _path)
    try:
        return TableSpec.model_validate(recipe.values)
    except ValidationError as error:
        raise UserError(explain(error, recipe, TableSpec)) from None


def chosen_rows(table: TableSpec, keys: Sequence[str]) -> dict[str, Row]:
    """Rows of these keys in the table's order; all where none is named.

    Raises:
        UserError: A key that the table does not have.
    """
    for key in keys:
        if key not in table.rows:
            raise UserError(f"the table has no row '{key}'{nearest(key, table.rows)}")
    return {key: row for key, row in table.rows.items() if not keys or key in keys}


def _path(name: str) -> Path:
    if name not in table_names():
        raise UserError(f"unknown table '{name}'{nearest(name, table_names())}")
    return _folder() / f"{name}.yaml"


def _folder() -> Path:
    return Path(str(resources.files("outmodal.launch.reproduce") / "tables"))
