"""What a table is: rows that differ in the method's keys only, one measure, the paper's figures.

A table is a YAML file in `tables/`; `base: OTHER` starts from another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from outmodal.base import Config
from outmodal.data.manifest import Kind
from outmodal.errors import UserError, nearest
from outmodal.launch.recipe import explain, read_recipe

Task = Literal["probe", "combinations", "retrieve", "classify", "missing"]
ColumnKind = Literal["sets", "whole", "unknown", "directions"]
HOLE = "{modality}"
"""What stands for a modality's name in the labels and method keys of a row or head."""


class Head(Config):
    """A number that each cell shows.

    Attributes:
        label: What it is called; with {modality} there is one for each modality of the column.
        metrics: Names of results; a cell shows the first that its evaluation has.
    """

    label: str = ""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]


class Row(Config):
    """One line of the table.

    Attributes:
        label: What the table calls it.
        method: Keys of the recipe's `method` section that make it; they override the table's.
            Nothing else of a run can be set, so that all rows have the same budget.
        modalities: The only number of modalities it is defined for; None is any.
        each: `modality` makes one row for each modality: KEY-image, KEY-text. {modality} in the
            label and in the method's texts is its name.
        of: The modality that such a row was made for; not to be set in a file.
        task: Its evaluation, where it has not the table's: a method of one modality has nothing to
            miss.
        epochs: Keys of the method that count epochs -> share of the run's length. At least one, and
            fewer than there are.
        kinds: Kinds of the learned modality that it is defined for; () is any.
        own: It reads the learned modality by a pretrained encoder of that, and classifies by
            sentences; for columns of kind `unknown`.
    """

    label: str
    method: dict[str, Any] = Field(default_factory=dict)
    modalities: int | None = Field(default=None, ge=2)
    each: Literal["modality"] | None = None
    of: str = ""
    task: Task | None = None
    epochs: dict[str, Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default_factory=dict)
    kinds: tuple[Kind, ...] = ()
    own: bool = False


class Reported(Config):
    """A block of the paper's figures.

    Attributes:
        title: What it is of.
        columns: Heads of its columns.
        rows: Row key -> figures as they are printed. "⚠" marks those that cannot be right, or that
            the paper prints differently elsewhere.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Reported:
        for key, figures in self.rows.items():
            if len(figures) != len(self.columns):
                raise ValueError(f"'{key}' has {len(figures)} of {len(self.columns)} figures")
        return self


_HEADS: dict[str, tuple[Head, ...]] = {
    "classify": (Head(label="accuracy", metrics=("top1",)),),
    "missing": (
        Head(label=f"Miss {HOLE}", metrics=(f"miss_{HOLE}/accuracy", f"miss_{HOLE}/mse")),
        Head(label="Complete", metrics=("complete/accuracy", "complete/mse", "top1")),
        Head(label="Average", metrics=("average/accuracy", "average/mse")),
    ),
}


class TableSpec(Config):
    """A table.

    Attributes:
        title: Its heading.
        source: The paper, with authors and number.
        note: What a reader has to know about how its rows are made and what they show.
        task: The evaluation of `outmodal eval` that fills it.
        columns: How columns are made. sets: growing sets of modalities. whole: all modalities of
            the data set. unknown: each of them in turn is unknown and learned, the others are
            known. directions: each ordered pair, of which one helps to learn the other.
        fewest: Modalities that a column, or the data set behind it, must have.
        pairs: Whether training samples must hold all modalities of a column.
        metrics: Tasks probe, combinations and retrieve: names of results; a cell shows the first
            that its evaluation has.
        heads: Tasks classify and missing: the numbers that a cell shows; () is the usual ones.
        scale: What results are multiplied by: 100 for percent.
        digits: Digits after the point.
        method: Keys of the recipe's `method` section for all rows.
        rows: Row key -> row. A row of the same key in two tables is the same run.
        reported: The paper's figures.
    """

    title: str
    source: str
    note: str = ""
    task: Task
    columns: ColumnKind = "sets"
    fewest: int = Field(default=2, ge=1)
    pairs: bool = True
    metrics: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ()
    scale: float = 100.0
    digits: int = Field(default=2, ge=0)
    method: dict[str, Any] = Field(default_factory=dict)
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    reported: tuple[Reported, ...] = ()

    @model_validator(mode="after")
    def _shows_something(self) -> TableSpec:
        if not self.metrics and not self.shown:
            raise ValueError(f"a table of task {self.task} names its `metrics`")
        for key, row in self.rows.items():
            if row.kinds and self.columns not in ("unknown", "directions"):
                raise ValueError(f"row '{key}' has `kinds`, and no single modality is learned here")
            if row.own and self.columns != "unknown":
                raise ValueError(f"row '{key}' is `own`, and no modality is unknown here")
        return self

    @property
    def shown(self) -> tuple[Head, ...]:
        """Heads of tasks classify and missing."""
        return self.heads or _HEADS.get(self.task, ())

    @property
    def views(self) -> bool:
        """Whether learners' inputs have augmentations for views: all rows', as some compare
        randomly changed views of a sample."""
        return self.columns == "unknown"


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


def each_modality(rows: Mapping[str, Row], modalities: Sequence[str]) -> dict[str, Row]:
    """The rows with one for each modality in place of those that are made so."""
    made: dict[str, Row] = {}
    for key, row in rows.items():
        if row.each is None:
            made[key] = row
            continue
        for m in modalities:
            changes = {"label": row.label.replace(HOLE, m), "method": _filled(row.method, m)}
            made[f"{key}-{m}"] = row.model_copy(update={**changes, "each": None, "of": m})
    return made


def _filled(value: Any, modality: str) -> Any:
    if isinstance(value, str):
        return value.replace(HOLE, modality)
    if isinstance(value, dict):
        return {key: _filled(held, modality) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(held, modality) for held in value]
    return value


def _path(name: str) -> Path:
    if name not in table_names():
        raise UserError(f"unknown table '{name}'{nearest(name, table_names())}")
    return _folder() / f"{name}.yaml"


def _folder() -> Path:
    return Path(str(resources.files("outmodal.launch.reproduce") / "tables"))
