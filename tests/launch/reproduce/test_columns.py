"""Columns: made as the table asks, refused where the data set cannot have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.launch.reproduce.columns import Column, check_pairs, make_columns
from outmodal.launch.reproduce.table import load_table
from tests.launch.reproduce.small import NAMES, make_data, make_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("columns") / "data")


@pytest.fixture(scope="module")
def recipe(dataset: Dataset) -> str:
    return make_recipe(dataset.root.parent)


def columns(table: str, dataset: Dataset, recipe: str, *asked: Sequence[str]) -> dict[str, Column]:
    found = make_columns(load_table(table), dataset, recipe, asked)
    return {column.name: column for column in found}


def test_each_modality_in_turn_is_unknown(dataset: Dataset, recipe: str) -> None:
    found = columns("cox-table2", dataset, recipe)
    assert list(found) == ["pose_from_force+text", "force_from_pose+text", "text_from_pose+force"]
    assert [c.head for c in found.values()] == list(NAMES)
    assert found["force_from_pose+text"].known == ("pose", "text")
    assert found["force_from_pose+text"].learned == "force"


def test_every_ordered_pair_is_a_direction(dataset: Dataset, recipe: str) -> None:
    assert len(columns("synergy-table2", dataset, recipe)) == 6
    found = columns("synergy-table2", dataset, recipe, ("pose", "text"))
    assert list(found) == ["text_to_pose", "pose_to_text"]
    assert [(c.known, c.learned) for c in found.values()] == [
        (("text",), "pose"),
        (("pose",), "text"),
    ]
    assert found["pose_to_text"].head == "pose to text"


def test_whole_is_one_column(dataset: Dataset, recipe: str) -> None:
    assert list(columns("ume-mma-table1", dataset, recipe)) == ["pose+force+text"]
    asked = (("pose", "text"), ("text", "force"), ("pose", "text"))
    assert list(columns("infobridge-table1", dataset, recipe, *asked)) == [
        "pose+text",
        "text+force",
    ]


@pytest.mark.parametrize(
    ("table", "asked", "part"),
    [
        ("cox-table2", (("pose", "text"),), "--modalities pose text: the table needs 3 modalities"),
        ("cox-table2", (("pose", "text", "forse"),), "did you mean 'force'"),
        ("synergy-table2", (("pose",),), "two or more different modalities"),
        ("ume-mma-table1", (("pose", "pose"),), "two or more different modalities"),
    ],
)
def test_sets_that_cannot_be(
    dataset: Dataset, recipe: str, table: str, asked: Sequence[Sequence[str]], part: str
) -> None:
    with pytest.raises(UserError, match=part):
        columns(table, dataset, recipe, *asked)


def test_three_modalities_of_a_data_set_with_two(tmp_path: Path, recipe: str) -> None:
    two = make_data(tmp_path / "two", modalities=("pose", "text"), samples=8)
    with pytest.raises(UserError, match=r"an unknown one and two that are known, and got 2"):
        columns("cox-table3", two, recipe)


def test_pairs_are_looked_for(tmp_path: Path, recipe: str) -> None:
    """No sample has all three, and some have two."""
    missing = {"pose": range(0, 12, 2), "force": range(1, 12, 2)}
    apart = make_data(tmp_path / "apart", samples=12, missing=missing)
    check_pairs(apart, "train", [Column(("pose", "text"))])
    with pytest.raises(UserError, match="no sample of split 'train' has force, pose together"):
        check_pairs(apart, "train", [Column(("pose", "force"))])
    check_pairs(apart, "test", [Column(NAMES)])
