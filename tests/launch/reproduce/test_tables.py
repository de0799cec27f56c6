"""The tables that are shipped: real runs, equal budgets, one run for one key."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.launch.reproduce.cells import Cell
from outmodal.launch.reproduce.table import TableSpec, load_table, table_names
from tests.launch.reproduce.small import make_data, planned

ISSUED = (
    "cox-table2",
    "cox-table3",
    "cox-table4",
    "infobridge-table1",
    "infobridge-table2",
    "infobridge-table3",
    "ova-ib-table1",
    "ova-ib-table2",
    "synergy-table2",
    "synergy-table3",
    "ume-mma-table1",
    "ume-mma-table4",
    "ume-mma-table5",
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Cell, ...]]:
    dataset = make_data(tmp_path_factory.mktemp("tables") / "data")
    return {name: planned(dataset, name, seeds=2).cells for name in table_names()}


def test_every_table_plans_real_runs(cells: dict[str, tuple[Cell, ...]]) -> None:
    """All keys of all rows are keys of this version's methods."""
    assert set(ISSUED) <= set(cells)
    for name, planned_cells in cells.items():
        made = {cell.row for cell in planned_cells}
        for key, row in load_table(name).rows.items():
            assert key in made or (row.each and any(m.startswith(f"{key}-") for m in made))


def test_one_folder_is_one_run_in_all_tables(cells: dict[str, tuple[Cell, ...]]) -> None:
    """The same key in two tables is the same run, and other settings have another folder."""
    runs: dict[Path, Cell] = {}
    shared = 0
    for name in table_names():
        for cell in cells[name]:
            shared += cell.folder in runs
            first = runs.setdefault(cell.folder, cell)
            assert (first.config, first.needs) == (cell.config, cell.needs), (name, cell.folder)
    assert shared > 20
    settings = [c.config.model_dump_json(exclude={"out"}) for c in runs.values()]
    assert len(set(settings)) == len(settings)


@pytest.mark.parametrize("name", ISSUED)
def test_rows_of_a_column_have_the_same_budget(
    cells: dict[str, tuple[Cell, ...]], name: str
) -> None:
    """Optimizer, length, batch and learner; a row that reads its modality by a frozen encoder has
    no learner to share."""
    own = {key for key, row in load_table(name).rows.items() if row.own}
    for column in {cell.column for cell in cells[name]}:
        rows = [c for c in cells[name] if c.column == column]
        learning = [c for c in rows if c.row not in own]
        assert len({c.config.optim for c in rows}) == 1
        assert len({c.config.engine for c in rows}) == 1
        assert len({c.config.data for c in learning}) == 1
        assert len({str(c.config.learners) for c in learning}) == 1


def test_paper_figures_are_of_rows_that_exist() -> None:
    for name in table_names():
        table = load_table(name)
        made = [f"{key}-" for key, row in table.rows.items() if row.each]
        for reported in table.reported:
            for key in reported.rows:
                assert key in table.rows or key.startswith(tuple(made)), (name, key)


def test_shares_of_the_run_are_epochs(dataset: Dataset) -> None:
    def warm(epochs: int) -> list[object]:
        changes = {"engine.epochs": epochs}
        found = planned(dataset, "cox-table2", changes=changes).cells
        return [c.config.model_dump()["method"]["warmup_epochs"] for c in found if c.row == "cox"]

    assert warm(10) == [3] * 3
    assert warm(2) == [1] * 3
    assert warm(1) == [0] * 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("shares") / "data")


def test_learners_of_cox_have_views_and_those_of_others_none(dataset: Dataset) -> None:
    def inputs(table: str) -> list[dict[str, object]]:
        found = planned(dataset, table).cells
        return [cfg.model_dump()["input"] for c in found for cfg in c.config.learners]

    assert all(read["augment"] and read["strong"] for read in inputs("cox-table3"))
    assert not any(read["augment"] or read["strong"] for read in inputs("synergy-table2"))


def test_a_row_for_each_modality(dataset: Dataset) -> None:
    plan = planned(dataset, "ume-mma-table1", columns=[("pose", "force"), ("force", "text")])
    alone = {key: row for key, row in plan.rows.items() if row.of}
    assert list(alone) == ["unimodal-pose", "unimodal-force", "unimodal-text"]
    assert [row.method["modalities"] for row in alone.values()] == [["pose"], ["force"], ["text"]]
    ran = [(c.row, c.column.name, c.task) for c in plan.cells if c.row in alone]
    assert ran == [
        ("unimodal-pose", "pose+force", "classify"),
        ("unimodal-force", "pose+force", "classify"),
        ("unimodal-force", "force+text", "classify"),
        ("unimodal-text", "force+text", "classify"),
    ]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"task": "probe"}, "names its `metrics`"),
        ({"rows": {"a": {"label": "A", "own": True}}}, "no modality is unknown"),
        ({"rows": {"a": {"label": "A", "kinds": ["text"]}}}, "no single modality"),
        ({"reported": [{"title": "P", "columns": ["X"], "rows": {"a": []}}]}, "0 of 1 figures"),
        ({"rows": {"a": {"label": "A", "each": "class"}}}, "modality"),
    ],
)
def test_a_table_that_cannot_be(change: dict[str, object], part: str) -> None:
    good = {"title": "T", "source": "S", "task": "classify", "rows": {"a": {"label": "A"}}}
    TableSpec.model_validate(good)
    with pytest.raises(ValueError, match=part):
        TableSpec.model_validate({**good, **change})


def test_no_row_is_left(dataset: Dataset) -> None:
    rows = {
        "mixtext": load_table("cox-table3").rows["mixtext"].model_copy(update={"kinds": ("video",)})
    }
    with pytest.raises(UserError, match="no row of the table"):
        planned(dataset, "cox-table3", rows=rows)
