"""CSV files to rows, and what is said about wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from outmodal.data.build.folder_rows import Problems, Row
from outmodal.data.build.folder_table import Columns, read_table
from outmodal.errors import UserError
from tests.data.build.sources import write, write_csv


def scan(
    folder: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: Columns | None = None,
    root: Path | None = None,
) -> list[Row]:
    source = write_csv(folder / "t.csv", header, rows)
    problems = Problems(source)
    found = read_table(source, root or folder, columns or Columns(), problems)
    problems.check()
    return found


def test_rows_of_files(tmp_path: Path) -> None:
    write(tmp_path, {"i/1.png": "x", "f/1.npy": "x", "i/2.png": "x"})
    rows = scan(
        tmp_path,
        ["key", "image", "force", "label", "split"],
        [["a-1", "i/1.png", "f/1.npy", "cat", "train"], ["a-2", " i/2.png ", "", "", "test"]],
    )
    assert [(r.place, r.key, r.label, r.split) for r in rows] == [
        ("row 1", "a-1", "cat", "train"),
        ("row 2", "a-2", "", "test"),
    ]
    assert rows[0].files["force"] == (tmp_path / "f/1.npy").resolve()
    assert list(rows[1].files) == ["image"]


def test_rows_without_keys_are_numbered(tmp_path: Path) -> None:
    write(tmp_path, {"1.png": "x"})
    rows = scan(tmp_path, ["image", "label"], [["1.png", "a"], ["1.png", "b"]])
    assert [(r.key, r.split) for r in rows] == [("000001", ""), ("000002", "")]


def test_columns_can_be_named_and_chosen(tmp_path: Path) -> None:
    write(tmp_path, {"1.png": "x"})
    columns = Columns(label="y", key="id", split="fold", modalities=("image",))
    rows = scan(
        tmp_path, ["id", "image", "y", "fold", "Comment"], [["k", "1.png", "a", "0", "?"]], columns
    )
    assert (rows[0].key, rows[0].label, rows[0].split) == ("k", "a", "0")
    assert list(rows[0].files) == ["image"]


def test_literal_text_is_text_unless_it_is_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"note.txt": "from the file"})
    columns = Columns(literal_text=("caption",))
    rows = scan(
        tmp_path,
        ["caption", "label"],
        [["a red coat, long", "a"], ["note.txt", "b"], ["x" * 5000, "c"], ["nul\0l", "d"]],
        columns,
    )
    assert rows[0].texts == {"caption": "a red coat, long"}
    assert list(rows[1].files) == ["caption"]
    assert len(rows[2].texts["caption"]) == 5000
    assert "caption" in rows[3].texts


def test_text_in_another_column_points_to_the_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 1, caption: .*does not exist; .*`literal_text`"):
        scan(tmp_path, ["caption", "label"], [["a red coat", "a"]])


def test_paths_may_be_relative_to_another_folder(tmp_path: Path) -> None:
    write(tmp_path, {"files/1.png": "x"})
    rows = scan(
        tmp_path / "tables",
        ["image", "label"],
        [["1.png", "a"], [str(tmp_path / "files/1.png"), "b"]],
        root=tmp_path / "files",
    )
    assert len(rows) == 2


def test_paths_and_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"secret.png": "x", "source/1.png": "x"})
    (tmp_path / "source/2.png").symlink_to("../secret.png")
    names = ["../secret.png", "2.png", str(tmp_path / "secret.png")]
    with pytest.raises(UserError) as caught:
        scan(tmp_path / "source", ["image", "label"], [[name, "a"] for name in names])
    assert "3 problems" in str(caught.value)
    assert str(caught.value).count("leads out of") == 3


def test_every_problem_names_its_row(tmp_path: Path) -> None:
    write(tmp_path, {"1.png": "x", "dir/2.png": "x", "empty.png": ""})
    rows = [
        ["a", "gone.png", "x", "train"],
        ["a", "1.png", "x", "train"],
        ["b.c", "1.png", "x", "train"],
        ["d", "dir", "x", "train"],
        ["e", "", "x", "train"],
        ["f", "1.png", "x", ""],
        ["g", "1.png", "x"],
        ["h", "empty.png", "x", "a/b"],
    ]
    with pytest.raises(UserError) as caught:
        scan(tmp_path, ["key", "image", "label", "split"], rows)
    message = str(caught.value)
    for part in (
        "9 problems",
        "row 1, image",
        "row 2: key 'a' is the key of row 1 too",
        "row 3: key 'b.c': expected",
        "is not a file",
        "row 5: no modality is there",
        "row 6: split ''",
        "row 7: 3 cells where the header has 4",
        "row 8, image",
        "row 8: split 'a/b'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        (["image", "lable"], Columns(), "no column 'label'; did you mean 'lable'"),
        (["image", "image", "label"], Columns(), "column 'image' is there twice"),
        (["label", "key"], Columns(), "no modality columns"),
        (["Image", "label"], Columns(), "column 'Image' cannot name a modality"),
        (["cls", "label"], Columns(), "column 'cls' cannot name a modality"),
        (["image", "label"], Columns(modalities=("imag",)), "no column 'imag'"),
        (["image", "label"], Columns(literal_text=("text",)), "no column 'text'"),
        (
            ["image", "note", "label"],
            Columns(modalities=("image",), literal_text=("note",)),
            "literal_text: 'note' is not among",
        ),
    ],
)
def test_a_wrong_header_is_named(
    tmp_path: Path, header: list[str], columns: Columns, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scan(tmp_path, header, [], columns)


@pytest.mark.parametrize("content", [b"image,label\n\xff\xfe,a\n", b'image,label\n"a,b\n'])
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "t.csv"
    source.write_bytes(content)
    with pytest.raises(UserError, match="is not a CSV file in UTF-8"):
        read_table(source, tmp_path, Columns(), Problems(source))


def test_an_empty_file_has_no_label_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(UserError, match="no column 'label'"):
        read_table(tmp_path / "t.csv", tmp_path, Columns(), Problems(tmp_path))
