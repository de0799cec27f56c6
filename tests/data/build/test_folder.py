"""Data sets from files: contents, labels, splits, and one message for all that is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from outmodal.data.build.folder import (
    FolderConfig,
    build_folder,
    number_labels,
    plan_folder,
    split_rows,
)
from outmodal.data.build.folder_rows import Problems, Row
from outmodal.data.check import check_dataset
from outmodal.data.labels import read_labels
from outmodal.errors import UserError
from tests.data.build.jobs import contents
from tests.data.build.sources import npy, png, read_all, wav, write, write_csv


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))


def tree(root: Path, samples: int = 5) -> Path:
    """Two classes with a picture and a series each; one sample lacks its series."""
    files: dict[str, bytes | str] = {}
    for n in range(samples):
        for label in ("smooth", "rough"):
            files[f"{label}/photo/{n}.png"] = png(n)
            if (n, label) != (0, "smooth"):
                files[f"{label}/force/{n}.npy"] = npy(n, 8, 3)
    return write(root, files)


def test_files_are_copied_as_they_are(tmp_path: Path) -> None:
    source = tree(tmp_path / "touch")
    dataset = build_folder(FolderConfig(source=source), tmp_path / "out", workers=2)
    manifest = dataset.manifest
    assert (manifest.name, manifest.classes) == ("touch", ("rough", "smooth"))
    assert manifest.modalities["photo"].model_dump(exclude_none=True) == {
        "kind": "image",
        "ext": "png",
        "channels": 1,
        "size": (6, 5),
    }
    assert manifest.modalities["force"].shape == (8, 3)
    assert [(s, i.samples) for s, i in manifest.splits.items()] == [("train", 8), ("test", 2)]
    members = read_all(dataset, "train") | read_all(dataset, "test")
    assert len(members) == 10
    for key, parts in members.items():
        stem, label = key.split("-")[1], manifest.classes[int(parts["cls"])]
        photo = (source / label / "photo" / f"{stem}.png").read_bytes()
        assert parts["photo.png"] == photo
        assert ("force.npy" in parts) == ((stem, label) != ("0", "smooth"))
    assert check_dataset(dataset).ok


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    cfg = FolderConfig(source=tree(tmp_path / "touch"), samples_per_shard=3)
    for workers in (1, 2):
        build_folder(cfg, tmp_path / f"out{workers}", workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")


def test_a_table_with_everything(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(0), "b.wav": wav(1), "c.txt": "a note\n"})
    source = write_csv(
        tmp_path / "table.csv",
        ["key", "image", "sound", "caption", "label", "split"],
        [
            ["one", "a.png", "b.wav", "a stone, wet", "stone", "train"],
            ["two", "a.png", "", "c.txt", "sand", "train"],
            ["three", "", "b.wav", "", "", "train"],
            ["four", "a.png", "b.wav", "dry sand", "sand", "holdout"],
        ],
    )
    cfg = FolderConfig(source=source, literal_text=("caption",), name="stones")
    dataset = build_folder(cfg, tmp_path / "out", workers=1)
    train = read_all(dataset, "train")
    assert set(train) == {"one", "two", "three"}
    assert train["one"]["caption.txt"] == b"a stone, wet"
    assert train["two"]["caption.txt"] == b"a note\n"
    assert set(train["three"]) == {"sound.wav"}
    assert set(read_all(dataset, "holdout")) == {"four"}
    assert dataset.modality("sound").sample_rate == 8000
    assert sorted(read_labels(dataset, "train").tolist()) == [-1, 0, 1]


def test_a_changed_source_is_not_mixed_with_a_finished_build(tmp_path: Path) -> None:
    source = tree(tmp_path / "touch")
    build_folder(FolderConfig(source=source), tmp_path / "out", workers=2)
    write(source, {"rough/photo/9.png": png(9)})
    with pytest.raises(UserError, match=r"files_sha256 was .* and is now"):
        build_folder(FolderConfig(source=source), tmp_path / "out")


def test_broken_files_are_named_and_may_pass(tmp_path: Path) -> None:
    source = tree(tmp_path / "touch")
    write(source, {"rough/photo/1.png": png(1)[:40], "smooth/force/2.npy": b"no array"})
    with pytest.raises(UserError) as caught:
        build_folder(FolderConfig(source=source), tmp_path / "out", workers=2)
    assert "2 of the files cannot be decoded" in str(caught.value)
    assert "rough/photo/1.png: not a readable image" in str(caught.value)
    assert "smooth/force/2.npy: not a readable npy" in str(caught.value)
    dataset = build_folder(FolderConfig(source=source, max_broken=2), tmp_path / "out")
    assert dataset.modality("photo").size == (6, 5)
    assert sum(split.samples for split in dataset.manifest.splits.values()) == 10


def test_an_output_inside_the_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies inside the source"):
        build_folder(FolderConfig(source=tree(tmp_path)), tmp_path / "out")


@pytest.mark.parametrize("name", ["nowhere", "table.xlsx"])
def test_a_source_that_is_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"expected an existing folder, or a \.csv file"):
        build_folder(FolderConfig(source=tmp_path / name), tmp_path / "out")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", ["image", "label"], [])
    with pytest.raises(UserError, match="no samples found"):
        build_folder(FolderConfig(source=source), tmp_path / "out")


def test_problems_of_all_sorts_come_together(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(0), "b.jpg": b"x"})
    source = write_csv(
        tmp_path / "t.csv", ["image", "label"], [["a.png", "x"], ["b.jpg", "y"], ["c.png", "z"]]
    )
    with pytest.raises(UserError) as caught:
        build_folder(FolderConfig(source=source, classes=("x", "z")), tmp_path / "out")
    for part in ("3 problems", "row 3, image", "several types", "row 2: unknown label 'y'"):
        assert part in str(caught.value)


def label_rows(*labels: str) -> list[Row]:
    return [Row(f"row {n}", str(n), label, "", {}) for n, label in enumerate(labels, 1)]


@pytest.mark.parametrize(
    ("labels", "classes", "names", "numbers"),
    [
        (["b", "a", "b"], (), ("a", "b"), [1, 0, 1]),
        (["b", "", "a"], (), ("a", "b"), [1, None, 0]),
        (["1", "0", "2"], (), ("0", "1", "2"), [1, 0, 2]),
        (["10", *map(str, range(10))], (), tuple(map(str, range(11))), [10, *range(10)]),
        (["a", "c"], ("c", "b", "a"), ("c", "b", "a"), [2, 0]),
        (["1", "0"], ("cat", "dog"), ("cat", "dog"), [1, 0]),
        (["3", "7"], ("7", "3"), ("7", "3"), [1, 0]),
    ],
)
def test_labels_become_numbers(
    labels: list[str], classes: tuple[str, ...], names: tuple[str, ...], numbers: list[int | None]
) -> None:
    problems = Problems(Path("source"))
    assert number_labels(label_rows(*labels), classes, problems) == (names, numbers)
    assert not problems.found


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["a", "a"], (), r"1 classes \(a\); expected at least two"),
        (["", ""], (), "0 classes"),
        (["1", "2", "3"], (), "no row has 0; number the classes from 0, or name"),
        (["cat", "dgo", "dgo"], ("cat", "dog"), "row 2 and 1 more: unknown label 'dgo'; did you"),
        (["0", "2"], ("cat", "dog"), "row 2: unknown label '2'"),
    ],
)
def test_wrong_labels_are_named(labels: list[str], classes: tuple[str, ...], message: str) -> None:
    problems = Problems(Path("source"))
    number_labels(label_rows(*labels), classes, problems)
    with pytest.raises(UserError, match=message):
        problems.check()


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    test=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    val=st.sampled_from([0.0, 0.1, 0.4]),
    seed=st.integers(0, 3),
)
def test_drawn_splits_are_stratified(counts: list[int], test: float, val: float, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    cfg = FolderConfig(source=Path("s"), test_fraction=test, val_fraction=val, seed=seed)
    rows = label_rows(*map(str, labels))
    try:
        splits = split_rows(rows, labels, cfg)
    except UserError:
        assert max(counts) <= (test > 0) + (val > 0)
        return
    assert sorted(row for members in splits.values() for row in members) == list(range(len(labels)))
    assert ("test" in splits, "val" in splits) == (test > 0, val > 0)
    assert split_rows(rows, labels, cfg) == splits
    drawn = {split: Counter(labels[row] for row in members) for split, members in splits.items()}
    for label, count in enumerate(counts):
        assert drawn["train"][label] >= 1
        if test and count >= 2:
            most = count - 1 - (val > 0 and count > 2)
            assert drawn["test"][label] == min(max(1, round(test * count)), most)
        if val and count >= 3:
            assert drawn["val"][label] >= 1


def test_samples_of_a_split_are_shuffled() -> None:
    labels = [n // 50 for n in range(100)]
    rows = label_rows(*map(str, labels))
    orders = [
        split_rows(rows, labels, FolderConfig(source=Path("s"), test_fraction=0, seed=seed))
        for seed in (0, 1)
    ]
    first = [labels[row] for row in orders[0]["train"][:50]]
    assert 10 < sum(first) < 40
    assert orders[0] != orders[1]


def test_samples_without_a_class_are_for_training() -> None:
    labels = [0, 0, 1, 1, None, None, None]
    rows = label_rows(*("" if label is None else str(label) for label in labels))
    splits = split_rows(rows, labels, FolderConfig(source=Path("s"), test_fraction=0.5))
    assert {4, 5, 6} <= set(splits["train"])
    assert sorted(labels[row] or 0 for row in splits["test"]) == [0, 1]


def test_too_few_samples_for_a_test_split_are_refused() -> None:
    with pytest.raises(UserError, match="too few samples a class for a test split"):
        split_rows(label_rows("a", "b"), [0, 1], FolderConfig(source=Path("s")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"test_fraction": 1.0},
        {"test_fraction": 0.5, "val_fraction": 0.5},
        {"samples_per_shard": -1},
        {"kinds": {"x": "smell"}},
        {"fraction": 0.1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FolderConfig.model_validate({"source": "s", **wrong})


@pytest.mark.parametrize(
    ("samples", "chosen", "size"), [(20, 0, 1), (70, 0, 2), (3200, 0, 100), (70, 50, 50)]
)
def test_shards_are_many_enough_for_streams(
    tmp_path: Path, samples: int, chosen: int, size: int
) -> None:
    write(tmp_path, {"a.txt": "text"})
    rows = [["a.txt", str(n % 2), "train"] for n in range(samples)]
    source = write_csv(tmp_path / "t.csv", ["text", "label", "split"], rows)
    plan = plan_folder(FolderConfig(source=source, samples_per_shard=chosen))
    assert plan.samples_per_shard == size
