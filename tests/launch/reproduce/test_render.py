"""Tables with several numbers a column, rows that are not defined, and what the paper prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outmodal.data.manifest import Dataset
from outmodal.launch.reproduce.cells import Plan
from outmodal.launch.reproduce.render import as_csv, blocks, markdown
from outmodal.launch.reproduce.table import load_table
from tests.launch.reproduce.small import make_data, planned


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("render") / "data")


def lines(table: str, plan: Plan, found: dict[int, dict[str, float]]) -> list[str]:
    spec = load_table(table)
    return markdown(spec, plan, blocks(spec, plan, found)).splitlines()


def of(plan: Plan, row: str, **values: float) -> dict[int, dict[str, float]]:
    """The same results for all cells of a row."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return {c.number: named for c in plan.cells if c.row == row}


def test_class_level_ranks_of_each_unknown_modality(dataset: Dataset, tmp_path: Path) -> None:
    plan = planned(dataset, "cox-table3", tmp_path, seeds=2)
    found = of(plan, "erm", top1=0.25, top5=0.5) | of(plan, "cox", top1=0.5, top5=0.75)
    found |= of(plan, "cox-unsup", top1=0.1, top5=0.3, matched__top1=0.6)
    text = lines("cox-table3", plan, found)
    assert text[4].startswith("| method | pose, R@1 | pose, R@5 | pose, matched | force, R@1 |")
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in text[6:18]}
    assert rows["Semi: ERM"][:3] == ["25.00 ± 0.00", "50.00 ± 0.00", "-"]
    assert rows["Semi: COX"][:2] == ["**50.00** ± 0.00", "**75.00** ± 0.00"]
    assert rows["Unsup: COX"][2] == "60.00 ± 0.00"
    assert rows["Semi: EntMin"][:2] == ["?", "?"]
    assert rows["Semi: MixText"][:1] == ["-"]
    whole = "\n".join(text)
    assert '"-" in pose, force: Semi: MixText: for a modality of kind text only.' in whole
    assert "R@k is class-level here" in whole
    assert "| 27.3/45.5 ⚠ |" in whole
    assert "⚠: doubtful in the paper itself." in whole
    assert "align on force, text, exported" in whole


def test_missing_modalities_have_a_column_each(dataset: Dataset, tmp_path: Path) -> None:
    plan = planned(dataset, "ume-mma-table1", tmp_path)
    names = ("pose", "force", "text")
    values: dict[str, Any] = {f"miss_{m}__accuracy": i / 10 for i, m in enumerate(names)}
    found = of(plan, "naive", **values, complete__accuracy=0.9, average__accuracy=0.3)
    found |= of(plan, "unimodal-force", top1=0.7)
    text = lines("ume-mma-table1", plan, found)
    assert "### M=3: pose+force+text" in text
    (head,) = (line for line in text if line.startswith("| method | Miss pose"))
    assert head == "| method | Miss pose | Miss force | Miss text | Complete | Average |"
    assert "| Naive | 0.00 | 10.00 | 20.00 | **90.00** | 30.00 |" in text
    assert "| Unimodal: force | - | - | - | 70.00 | - |" in text
    assert len([line for line in text if line.startswith("| Unimodal | 35.16 |")]) == 1


def test_one_block_of_the_papers_figures_stands_beside(dataset: Dataset, tmp_path: Path) -> None:
    plan = planned(dataset, "cox-table4", tmp_path)
    text = lines("cox-table4", plan, {})
    (row,) = (line for line in text if line.startswith("| Semi: COX | "))
    assert row.endswith("| 25.2 | 24.1 | 40.0 ⚠ |")


def test_the_csv_says_which_modality_is_learned(dataset: Dataset, tmp_path: Path) -> None:
    plan = planned(dataset, "synergy-table3", tmp_path)
    last = as_csv(plan, of(plan, "synergy-cosine", top1=0.5)).splitlines()[-1]
    number = plan.cells[-1].number
    assert last == f"{number},synergy-cosine,force+text,2,text,0,top1,0.5"


def test_errors_are_best_where_they_are_small(dataset: Dataset, tmp_path: Path) -> None:
    plan = planned(dataset, "ume-mma-table1", tmp_path)
    found = of(plan, "naive", complete__mse=0.5) | of(plan, "ume-mma", complete__mse=0.25)
    spec = load_table("ume-mma-table1").model_copy(update={"heads": ()})
    text = markdown(spec, plan, blocks(spec, plan, found)).splitlines()
    assert "| Naive | - | - | - | 0.5000 | - |" in text
    assert "| UME-MMA | - | - | - | **0.2500** | - |" in text
