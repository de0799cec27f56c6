"""Several data sets as one: modalities, classes, splits, labels, batches, and what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.data.arrays import SeriesInput, VectorInput
from outmodal.data.batch import StreamSpec
from outmodal.data.epoch import drawn_counts, epoch_use
from outmodal.data.labels import read_labels
from outmodal.data.manifest import Dataset, open_dataset, write_manifest
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.transform import fit_values
from outmodal.errors import UserError
from tests.data.mixed import open_mix, recut
from tests.data.tiny import make_tiny

SPEC = StreamSpec("all", "train", ("pose", "force"), 8)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("one") / "one", 40, 3, ("pose", "force"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Another one: smaller, with `pose` and `text` only, and one class more."""
    root = tmp_path_factory.mktemp("two") / "two"
    made = make_tiny(root, 12, 2, ("pose", "text"), classes=4, seed=1, test=0)
    write_manifest(root, made.manifest.model_copy(update={"name": "two"}))
    return open_dataset(root)


def edited(source: Dataset, root: Path, **changes: Any) -> Dataset:
    """A copy whose manifest says something else of `pose`."""
    dataset = recut(source, root, [4])
    spec = dataset.manifest.modalities["pose"].model_copy(update=changes)
    modalities = {**dataset.manifest.modalities, "pose": spec}
    write_manifest(root, dataset.manifest.model_copy(update={"modalities": modalities}))
    return open_dataset(root)


def at(dataset: Dataset, **keys: Any) -> Mapping[str, Any]:
    return {"path": str(dataset.root), **keys}


def test_modalities_splits_and_shards_are_those_of_all(one: Dataset, two: Dataset) -> None:
    mix = open_mix(at(one), at(two))
    assert list(mix.manifest.modalities) == ["pose", "force", "text"]
    assert mix.manifest.name == "tiny+two"
    assert mix.split("train").samples == 52
    assert mix.split("test").samples == 12  # the second has none
    assert [info.samples for info in mix.split("train").shards] == [14, 13, 13, 6, 6]
    assert [mix.source_of("train", k) for k in range(5)] == ["tiny"] * 3 + ["two"] * 2
    places = [mix.shard(info).where for info in mix.split("train").shards]
    assert places[0] == one.shard(one.split("train").shards[0]).where
    assert places[4] == two.shard(two.split("train").shards[1]).where
    first, last = mix.split("train").shards[0], mix.split("train").shards[4]
    assert mix.modality_in(first, "force") is not None
    assert mix.modality_in(last, "force") is None
    again = pickle.loads(pickle.dumps(mix))  # noqa: S301 (our own bytes)
    assert again.fingerprint() == mix.fingerprint()


def test_classes_are_offset_unless_told_otherwise(one: Dataset, two: Dataset) -> None:
    mix = open_mix(at(one), at(two))
    assert mix.manifest.classes == (
        *("red", "green", "blue"),
        *("two/red", "two/green", "two/blue", "black"),
    )
    labels = read_labels(mix, "train")
    assert labels[:40].tolist() == read_labels(one, "train").tolist()
    assert (labels[40:] == read_labels(two, "train") + 3).all()


def test_a_mapping_joins_classes_by_name(one: Dataset, two: Dataset) -> None:
    mix = open_mix(at(one), at(two, classes={"black": "blue"}))
    assert mix.manifest.classes == ("red", "green", "blue")
    wanted = np.array([0, 1, 2, 2])[read_labels(two, "train")]
    assert read_labels(mix, "train")[40:].tolist() == wanted.tolist()
    more = open_mix(at(one, classes={"red": "crimson"}), at(two, classes={"red": "crimson"}))
    assert more.manifest.classes == ("crimson", "green", "blue", "black")


def test_the_same_classes_must_be_the_same(one: Dataset, two: Dataset, tmp_path: Path) -> None:
    twin = make_tiny(tmp_path / "twin", 6, 1, ("pose",), seed=2, test=0)
    assert open_mix(at(one), at(twin, classes="same")).manifest.classes == one.manifest.classes
    with pytest.raises(UserError, match=r"two has the classes .*black.*classes: same.*offset"):
        open_mix(at(one), at(two, classes="same"))


def test_batches_have_the_labels_and_modalities_of_their_samples(
    one: Dataset, two: Dataset
) -> None:
    mix = open_mix(at(one), at(two))
    labels = read_labels(mix, "train")
    inputs = {
        "pose": VectorInput(dim=7).build(mix, "pose", None),
        "force": SeriesInput(length=16, channels=3).build(mix, "force", None),
    }
    cfg = StreamConfig(batch=8, streams=4, window=16)
    with Loader(mix, inputs, cfg) as loader:
        seen = []
        for batches in loader.open_epoch([SPEC], seed=0, epoch=0, steps=12):
            batch = batches["all"]
            seen += batch.index.tolist()
            assert (labels[batch.index] == batch.label.numpy()).all()
            assert batch.present["pose"].all()
            assert (batch.present["force"] == (batch.index < 40)).all()
            assert (batch.x["force"][batch.index >= 40] == 0).all()
        rows = [i for b in loader.open_pass(StreamSpec("e", "test", ("pose",), 8)) for i in b.index]
    assert rows[:12] == list(range(12))
    counts = drawn_counts(mix, [SPEC], 12, seed=0, epoch=0, streams=4, window=16)
    assert counts == {"tiny": sum(i < 40 for i in seen), "two": sum(i >= 40 for i in seen)}


def test_selections_are_drawn_by_their_own_samples(one: Dataset, two: Dataset) -> None:
    mix = open_mix(at(one), at(two))
    select = np.array([0, 1, 5, 44])
    spec = StreamSpec("some", "train", ("pose",), 8, select)
    inputs = {"pose": VectorInput(dim=7).build(mix, "pose", None)}
    with Loader(mix, inputs, StreamConfig(batch=8, streams=4, window=16)) as loader:
        seen = [
            i
            for batches in loader.open_epoch([spec], seed=0, epoch=0, steps=20)
            for i in batches["some"].index.tolist()
        ]
    assert set(seen) == set(select.tolist())
    assert 30 <= seen.count(44) <= 50  # a quarter of 160
    only = StreamSpec("some", "train", ("pose",), 8, np.array([44, 45]))
    with Loader(mix, inputs, StreamConfig(batch=8, streams=4, window=16)) as loader:
        (batches,) = loader.open_epoch([only], seed=0, epoch=0, steps=1)
    assert set(batches["some"].index.tolist()) == {44, 45}


def test_shares_follow_samples_weights_temperature_or_proportions(
    one: Dataset, two: Dataset
) -> None:
    def shares(*sources: Mapping[str, Any], **keys: Any) -> list[float]:
        use = epoch_use(open_mix(*sources, **keys), "train", 4)
        return [source.drawn / use.drawn for source in use.sources]

    assert shares(at(one), at(two)) == pytest.approx([40 / 52, 12 / 52])
    assert shares(at(one), at(two, weight=3)) == pytest.approx([40 / 76, 36 / 76])
    root = np.sqrt([40, 12])
    assert shares(at(one), at(two), temperature=2) == pytest.approx(list(root / root.sum()))
    given = shares(at(one, proportion=3), at(two, proportion=1))
    assert given == pytest.approx([0.75, 0.25])


def test_the_use_of_an_epoch_is_said(one: Dataset, two: Dataset) -> None:
    mix = open_mix(at(one), at(two, weight=3))
    text = epoch_use(mix, "train", 16).sentence()
    assert "an epoch has 52 samples, uses 48, drops 4" in text
    assert "tiny: 40 samples, 52.6 %, 0.63 passes" in text
    assert "two: 12 samples, 47.4 %, 1.89 passes" in text
    plain = epoch_use(one, "train", 16)
    assert (plain.samples, plain.used, plain.dropped) == (40, 32, 8)
    assert "goes through them 2.40 times" in epoch_use(one, "train", 16, steps=6).sentence()


def test_another_split_of_a_source_is_trained_on(one: Dataset, two: Dataset) -> None:
    mix = open_mix(at(two), at(one, split="test"))
    assert mix.split("train").samples == 12 + 12
    assert mix.manifest.splits["test"].samples == 0  # it is trained on


def test_the_fingerprint_covers_data_weights_and_classes(one: Dataset, two: Dataset) -> None:
    mixes = [
        open_mix(at(one), at(two)),
        open_mix(at(two), at(one)),
        open_mix(at(one), at(two, weight=2)),
        open_mix(at(one), at(two), temperature=2),
        open_mix(at(one), at(two, classes={"black": "red"})),
        open_mix(at(one, proportion=1), at(two, proportion=1)),
    ]
    assert len({mix.fingerprint() for mix in mixes}) == len(mixes)
    assert mixes[0].fingerprint() == open_mix(at(one), at(two)).fingerprint()


def test_fitting_looks_at_every_source(one: Dataset, two: Dataset) -> None:
    mix = open_mix(at(one), at(two))
    poses = [np.asarray(value).tolist() for _, value in fit_values(mix, "pose", 8)]
    first = [np.asarray(value).tolist() for _, value in fit_values(one, "pose", 4)]
    second = [np.asarray(value).tolist() for _, value in fit_values(two, "pose", 4)]
    assert poses == first + second
    assert len(fit_values(mix, "text", 8)) == 8  # the first has none


class TestRefusals:
    def test_kinds_that_disagree(self, one: Dataset, tmp_path: Path) -> None:
        other = edited(one, tmp_path / "o", kind="series", shape=(7, 1))
        with pytest.raises(UserError, match=r"kind of modality 'pose' is vector .*series.*leave"):
            open_mix(at(one), at(other))

    def test_perceptors_and_lengths_that_disagree(self, one: Dataset, tmp_path: Path) -> None:
        other = edited(one, tmp_path / "p", perceptor="imagebind:x")
        with pytest.raises(UserError, match=r"perceptor of modality 'pose' is None .*imagebind:x"):
            open_mix(at(one), at(other))
        longer = edited(one, tmp_path / "l", shape=(8,))
        with pytest.raises(UserError, match=r"'pose' has the shape \[7\] .*\[8\]"):
            open_mix(at(one), at(longer))

    def test_an_unknown_class(self, one: Dataset, two: Dataset) -> None:
        with pytest.raises(UserError, match=r"names 'blak'.*did you mean 'black'"):
            open_mix(at(one), at(two, classes={"blak": "red"}))
        with pytest.raises(UserError, match=r"maps 'black' to 'gren'.*did you mean 'green'"):
            open_mix(at(one), at(two, classes={"black": "gren"}))

    def test_the_same_data_set_by_two_names(self, one: Dataset) -> None:
        with pytest.raises(UserError, match=r"names .* twice.*larger weight"):
            open_mix(at(one), {"path": f"{one.root}/."})

    def test_a_source_without_the_split(self, one: Dataset, two: Dataset) -> None:
        with pytest.raises(UserError, match=r"no split 'trian'.*did you mean 'train'"):
            open_mix(at(one), at(two, split="trian"))
        with pytest.raises(UserError, match=r"split 'test' is empty"):
            open_mix(at(one), at(two, split="test"))

    def test_what_needs_a_folder(self, one: Dataset, two: Dataset) -> None:
        with pytest.raises(UserError, match="a mixture has none"):
            _ = open_mix(at(one), at(two)).root
