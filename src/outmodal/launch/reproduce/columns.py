"""The columns of a table: what modalities the user's data set has, arranged as the table asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outmodal.data.manifest import Dataset
from outmodal.data.shards import scan_shard
from outmodal.errors import UserError
from outmodal.launch.config import adapted
from outmodal.launch.reproduce.table import ColumnKind, TableSpec

FEWEST, MOST = 3, 6
"""Numbers of modalities in the columns that are made where none are named."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        modalities: All that its runs are about, the learned one last.
        learned: The unknown modality, or the one that is helped; "" where all are learned.
        kind: How it was made.
    """

    modalities: tuple[str, ...]
    learned: str = ""
    kind: ColumnKind = "sets"

    @property
    def known(self) -> tuple[str, ...]:
        """The others: known ones, or the helper."""
        return tuple(m for m in self.modalities if m != self.learned)

    @property
    def name(self) -> str:
        """Name of the folder of its runs."""
        others = "+".join(self.known)
        if self.kind == "unknown":
            return f"{self.learned}_from_{others}"
        return f"{others}_to_{self.learned}" if self.kind == "directions" else others

    @property
    def head(self) -> str:
        """What the table calls it."""
        if self.kind == "unknown":
            return self.learned
        if self.kind == "directions":
            return f"{self.known[0]} to {self.learned}"
        return f"M={len(self.modalities)}: {self.name}"


def make_columns(
    table: TableSpec, dataset: Dataset, recipe: str, asked: Sequence[Sequence[str]]
) -> list[Column]:
    """Columns of the sets of modalities that the user names, or of those of the data set.

    Args:
        table: Says how.
        dataset: The data.
        recipe: Its learners give the order.
        asked: Sets that the user names.

    Raises:
        UserError: Unknown modalities, one twice, or fewer than the table needs.
    """
    for names in asked:
        _check_named(dataset, names)
    sets = [tuple(names) for names in asked]
    if not sets:
        every = ordered(dataset, recipe)
        _check_enough(table, dataset, every, "")
        sets = _growing(every) if table.columns == "sets" else [every]
    for names in sets:
        _check_enough(table, dataset, names, f"--modalities {' '.join(names)}: ")
    made = [column for names in sets for column in _of(table.columns, names)]
    return list(dict.fromkeys(made))


def ordered(dataset: Dataset, recipe: str) -> tuple[str, ...]:
    """Modalities of the data set, those of the recipe's learners first."""
    known = list(dataset.manifest.modalities)
    first = [cfg.modality for cfg in adapted(recipe, {}, recipe).learners]
    return tuple([m for m in first if m in known] + [m for m in known if m not in first])


def check_pairs(dataset: Dataset, split: str, columns: Sequence[Column]) -> None:
    """Raise UserError where no training sample holds all modalities of a column."""
    sets = dict.fromkeys(frozenset(column.modalities) for column in columns)
    for wanted in sets:
        if not _some_sample_has(dataset, split, wanted):
            raise UserError(
                f"{dataset.root}: no sample of split '{split}' has {', '.join(sorted(wanted))} "
                "together, and the rows of this table learn from samples that pair them: build the "
                "data set with modalities of one thing under one key, or name others with "
                "--modalities"
            )


def _of(kind: ColumnKind, names: tuple[str, ...]) -> list[Column]:
    if kind == "unknown":
        return [Column((*(o for o in names if o != m), m), m, kind) for m in names]
    if kind == "directions":
        return [Column((a, b), b, kind) for b in names for a in names if a != b]
    return [Column(names, "", kind)]


def _growing(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The first 3, 4, ... of them."""
    sizes = range(min(FEWEST, len(names)), min(MOST, len(names)) + 1)
    return [names[:size] for size in sizes]


def _some_sample_has(dataset: Dataset, split: str, wanted: frozenset[str]) -> bool:
    for shard in dataset.split(split).shards:
        index = scan_shard(dataset.shard(shard))
        for place in range(len(index)):
            if wanted <= {suffix.split(".")[0] for suffix in index.suffixes(place)}:
                return True
    return False


def _check_named(dataset: Dataset, names: Sequence[str]) -> None:
    for modality in names:
        dataset.modality(modality)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"--modalities {' '.join(names)}: name two or more different modalities a column; "
            f"{dataset.root} has {', '.join(dataset.manifest.modalities)}"
        )


def _check_enough(table: TableSpec, dataset: Dataset, names: Sequence[str], origin: str) -> None:
    if len(names) < 2:
        raise UserError(
            f"{dataset.root} has one modality ({', '.join(names)}), and a table about several "
            "needs two or more: build a data set with others beside it"
        )
    if len(names) < table.fewest:
        held = ", ".join(dataset.manifest.modalities)
        raise UserError(
            f"{origin}the table needs {table.fewest} modalities, {_why(table)}, and got "
            f"{len(names)} ({', '.join(names)}; {dataset.root} has {held}): name more, take a data "
            "set that has them, or train the methods by themselves with `outmodal train`"
        )


def _why(table: TableSpec) -> str:
    return "an unknown one and two that are known" if table.columns == "unknown" else "as its rows"
