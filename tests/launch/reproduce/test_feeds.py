"""What rows read: the user's encoders, ones that are trained first, or nothing, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.launch.reproduce.cells import Plan
from outmodal.launch.reproduce.feeds import SIZE, read_perceptors
from outmodal.launch.reproduce.preparations import Encoders, Features
from outmodal.launch.reproduce.table import load_table
from tests.data.tiny import make_tiny
from tests.launch.reproduce.small import make_data, make_recipe, planned


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("feeds") / "data")


@pytest.fixture(scope="module")
def recipe(dataset: Dataset) -> str:
    return make_recipe(dataset.root.parent)


def plan(dataset: Dataset, recipe: str, table: str, *perceptors: str, **asked: Any) -> Plan:
    read = read_perceptors(perceptors, load_table(table), dataset)
    return planned(dataset, table, recipe=recipe, perceptors=read, **asked)


def trained(plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    """Method and modalities of the encoders that are trained first."""
    needs = [part for part in plan.needs if isinstance(part, Encoders)]
    return [(part.config.method.name, part.modalities) for part in needs]


def test_known_modalities_are_aligned_without_the_unknown(dataset: Dataset, recipe: str) -> None:
    found = plan(dataset, recipe, "cox-table4")
    assert trained(found) == [
        ("align", ("force", "text")),
        ("align", ("pose", "text")),
        ("align", ("pose", "force")),
    ]
    cell = next(c for c in found.cells if c.column.learned == "force")
    method = cell.config.model_dump()["method"]
    assert (method["unknown"], method["known"]) == ("force", ("pose", "text"))
    assert method["dim"] == SIZE
    encoders, features = cell.needs
    assert isinstance(encoders, Encoders)
    assert isinstance(features, Features)
    assert features.keep == ("force",)
    assert cell.config.data.path == str(features.data)
    assert [p.reads() for p in features.perceptors] == ["pose", "text"]


def test_rows_and_tables_share_what_is_prepared(dataset: Dataset, recipe: str) -> None:
    two, three = (plan(dataset, recipe, name) for name in ("cox-table2", "cox-table3"))
    assert two.needs == three.needs
    seeds = plan(dataset, recipe, "cox-table2", seeds=3)
    assert seeds.needs == two.needs


def test_other_settings_are_prepared_elsewhere(dataset: Dataset, recipe: str) -> None:
    places = {
        plan(dataset, recipe, "cox-table4", prepare_epochs=length, changes=changes).needs
        for length, changes in ((10, {}), (5, {}), (10, {"data.batch": 4}))
    }
    assert len(places) == 3
    device = plan(dataset, recipe, "cox-table4", changes={"engine.device": "auto"})
    assert [p.folder for p in device.needs] == [
        p.folder for p in plan(dataset, recipe, "cox-table4").needs
    ]


def test_encoders_that_the_user_names(dataset: Dataset, recipe: str) -> None:
    """One that is named, one that is left and has nothing to be aligned with, vectors as they
    are."""
    found = plan(dataset, recipe, "cox-table4", "pose=some/hub-id")
    assert trained(found) == [
        ("align", ("force", "text")),
        ("erm", ("text",)),
        ("erm", ("force",)),
    ]
    kept = plan(dataset, recipe, "cox-table4", "pose=stored", "text=some/hub-id")
    column = next(c for c in kept.cells if c.column.learned == "force")
    (features,) = column.needs
    assert isinstance(features, Features)
    assert features.keep == ("pose", "force")
    assert [p.reads() for p in features.perceptors] == ["text"]


def test_vectors_that_an_encoder_made_are_features(tmp_path: Path, recipe: str) -> None:
    made = make_tiny(tmp_path / "made", samples=12, modalities=("pose", "force", "text"))
    specs = dict(made.manifest.modalities)
    specs["pose"] = specs["pose"].model_copy(update={"perceptor": "hub:x@1"})
    manifest = made.manifest.model_copy(update={"modalities": specs})
    (made.root / "dataset.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    from outmodal.data.manifest import open_dataset

    found = plan(open_dataset(made.root), recipe, "cox-table4")
    force = next(c for c in found.cells if c.column.learned == "force")
    assert isinstance(force.needs[-1], Features)
    assert force.needs[-1].keep == ("pose", "force")


def test_aligned_learns_from_all_pairs_once(dataset: Dataset, recipe: str) -> None:
    found = plan(dataset, recipe, "cox-table2")
    cells = [c for c in found.cells if c.row == "aligned"]
    assert len({c.needs[0] for c in cells}) == 1
    for cell in cells:
        made, features = cell.needs
        assert isinstance(made, Encoders)
        assert set(made.modalities) == {"pose", "force", "text"}
        assert isinstance(features, Features)
        assert [p.reads() for p in features.perceptors] == [cell.column.learned]
        prompts = cell.config.model_dump()["method"]["prompts"]
        assert prompts["path"] == str(made.place("text"))


def test_aligned_is_left_out_with_the_reason(dataset: Dataset, recipe: str, tmp_path: Path) -> None:
    half = plan(dataset, recipe, "cox-table2", "pose=some/hub-id")
    why = {column.learned: text for (row, column), text in half.absent.items() if row == "aligned"}
    assert why == {"pose": "--perceptors names no encoder of text into the same space"}
    silent = make_data(tmp_path / "silent", modalities=("pose", "force", "image"), samples=12)
    mute = plan(silent, recipe, "cox-table2")
    assert {text for (row, _), text in mute.absent.items() if row == "aligned"} == {
        "no modality of kind text, so nothing can read the classes' sentences"
    }


def test_helpers_speak_by_sentences_or_features(dataset: Dataset, recipe: str) -> None:
    found = {c.column.name: c for c in plan(dataset, recipe, "synergy-table3").cells}
    text = found["text_to_pose"].config.model_dump()["method"]
    assert text["targets"] == "text"
    assert text["helper"]["path"] == str(found["text_to_pose"].needs[0].place("text"))  # type: ignore[union-attr]
    pose = found["pose_to_text"].config.model_dump()["method"]
    assert (pose["targets"], pose["guide"]) == ("samples", "pose")
    controls = {
        c.row: c.config.model_dump()["method"]["targets"]
        for c in plan(dataset, recipe, "synergy-table2").cells
        if c.row.startswith("synergy") and c.column.name == "pose_to_text"
    }
    assert controls["synergy-gaussian"] == controls["synergy-constant"] == "gaussian"
    assert controls["synergy-alpha0"] == controls["synergy-alpha0.3"] == "samples"


def test_helpers_hear_other_recordings_with_noise(tmp_path: Path, recipe: str) -> None:
    """Table 5 of the paper: sounds are disturbed, pictures are only shuffled."""
    heard = make_data(tmp_path / "heard", modalities=("speech", "image", "pose"), samples=12)
    cells = plan(heard, recipe, "synergy-table3").cells
    noise = {}
    for cell in cells:
        features = cell.needs[-1]
        assert isinstance(features, Features)
        noise[cell.column.known[0]] = [p.noise_std for p in features.perceptors]
    assert noise == {"speech": [0.0316], "image": [0.0], "pose": [0.0]}


@pytest.mark.parametrize(
    ("table", "texts", "part"),
    [
        ("cox-table2", ("tetx=folder",), "no modality 'tetx'; did you mean 'text'"),
        ("cox-table2", ("text=stored",), "'text' is of kind text"),
        ("cox-table2", ("text=a", "text=b"), "two encoders of 'text'"),
        ("cox-table2", ("no-such-export",), "no-such-export"),
        ("ume-mma-table1", ("text=folder",), "trains every encoder itself"),
    ],
)
def test_mistaken_perceptors(
    dataset: Dataset, table: str, texts: tuple[str, ...], part: str
) -> None:
    with pytest.raises(UserError, match=part):
        read_perceptors(texts, load_table(table), dataset)
