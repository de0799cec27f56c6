"""Directory trees to rows: splits, classes, samples of several modalities, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmodal.data.build.folder_rows import Problems, Row
from outmodal.data.build.folder_tree import read_tree
from outmodal.errors import UserError
from tests.data.build.sources import write


def scan(source: Path) -> list[Row]:
    problems = Problems(source)
    rows = read_tree(source, problems)
    problems.check()
    return rows


def test_classes_without_splits(tmp_path: Path) -> None:
    write(tmp_path, {"dog/2.png": "x", "cat/1.png": "x", "cat/3.JPEG": "x"})
    rows = scan(tmp_path)
    assert [(r.place, r.label, r.split) for r in rows] == [
        ("cat/1", "cat", ""),
        ("cat/3", "cat", ""),
        ("dog/2", "dog", ""),
    ]
    assert [r.key for r in rows] == ["000000-1", "000001-3", "000002-2"]
    assert rows[1].files == {"image": (tmp_path / "cat/3.JPEG").resolve()}


def test_splits_above_classes(tmp_path: Path) -> None:
    write(tmp_path, {"test/cat/1.png": "x", "train/cat/1.png": "x", "train/dog/1.png": "x"})
    assert [(r.split, r.label) for r in scan(tmp_path)] == [
        ("test", "cat"),
        ("train", "cat"),
        ("train", "dog"),
    ]


def test_one_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    write(tmp_path, {"bus/1.png": "x", "train/1.png": "x"})
    assert [(r.split, r.label) for r in scan(tmp_path)] == [("", "bus"), ("", "train")]


def test_splits_beside_another_folder_are_ambiguous(tmp_path: Path) -> None:
    write(tmp_path, {"train/cat/1.png": "x", "test/cat/1.png": "x", "extra/cat/1.png": "x"})
    with pytest.raises(UserError, match=r"'test' and 'train' look like splits, 'extra' does not"):
        scan(tmp_path)


def test_files_of_one_stem_are_one_sample(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": "x", "a/1.wav": "x", "a/1.npy": "x", "a/2.txt": "x"})
    rows = scan(tmp_path)
    assert [sorted(r.files) for r in rows] == [["array", "audio", "image"], ["text"]]


def test_a_folder_a_modality(tmp_path: Path) -> None:
    write(tmp_path, {"a/depth/1.png": "x", "a/rgb/1.png": "x", "a/rgb/2.png": "x"})
    rows = scan(tmp_path)
    assert [(r.place, sorted(r.files)) for r in rows] == [
        ("a/1", ["depth", "rgb"]),
        ("a/2", ["rgb"]),
    ]


def test_hidden_files_and_files_beside_classes_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"README.md": "x", "a/.DS_Store": "x", ".git/config": "x", "a/1.png": "x"})
    assert [r.place for r in scan(tmp_path)] == ["a/1"]


def test_keys_hold_what_the_format_allows(tmp_path: Path) -> None:
    write(tmp_path, {"a b/für.v2 (1).png": "x", f"a b/{'n' * 90}.png": "x"})
    keys = [r.key for r in scan(tmp_path)]
    assert keys == ["000000-f_r_v2_1_", f"000001-{'n' * 48}"]


def test_a_link_inside_the_source_is_followed(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": "x", "b/2.png": "x"})
    (tmp_path / "b/3.png").symlink_to("../a/1.png")
    assert scan(tmp_path)[-1].files["image"] == (tmp_path / "a/1.png").resolve()


def test_links_out_of_the_source_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"secret/1.png": "x", "source/a/1.png": "x"})
    (tmp_path / "source/a/2.png").symlink_to(tmp_path / "secret/1.png")
    (tmp_path / "source/b").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError) as caught:
        scan(tmp_path / "source")
    assert "2 problems" in str(caught.value)
    assert "a/2.png leads out of" in str(caught.value)
    assert "source/b leads out of the source" in str(caught.value)


def test_every_problem_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": "x", "a/1.jpg": "x", "a/2.png": "", "b/Left/1.png": "x"})
    write(tmp_path, {"b/rgb/1.png/deep.png": "x", "c/rgb/1.png": "x", "c/2.png": "x"})
    (tmp_path / "a/3.png").symlink_to("nowhere.png")
    (tmp_path / "a/4.png").symlink_to("4.png")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError) as caught:
        scan(tmp_path)
    message = str(caught.value)
    for part in (
        "7 problems",
        "sample '1' has two files for modality 'image'",
        "a/2.png is empty",
        "a/3.png does not exist",
        "a/4.png cannot be read",
        "'Left' cannot name a modality",
        "b/rgb/1.png is not a file",
        "c holds files and folders",
    ):
        assert part in message


def test_ten_problems_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    write(tmp_path, {f"a/{n:02d}.png": "" for n in range(25)})
    with pytest.raises(UserError) as caught:
        scan(tmp_path)
    assert "25 problems" in str(caught.value)
    assert str(caught.value).count("is empty") == 10
    assert str(caught.value).endswith("and 15 more")


@pytest.mark.parametrize("files", [{}, {"1.png": "x"}, {"train/1.png": "x"}])
def test_a_source_without_classes_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(UserError, match="has no class folders"):
        scan(write(tmp_path, files))
