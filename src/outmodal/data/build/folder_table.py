"""Rows from a CSV file: one row a sample, one column a modality.

    key,image,force,caption,label,split
    a01,img/a01.png,force/a01.npy,a smooth stone,stone,train

Paths are relative to the CSV's folder (or to `root`). An empty cell says that the sample lacks the
modality, an empty label that it has no class. Rows are numbered from 1, without the header.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outmodal.data.build.folder_rows import Problems, Row, modality_problem, resolve_file
from outmodal.errors import UserError, nearest

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Attributes:
        label: Class name or number; this column must be there.
        split, key: Read if they are there.
        modalities: Columns of files; all other columns if this is empty.
        literal_text: Modality columns that hold text, unless a value is the path of a file.
    """

    label: str = "label"
    split: str = "split"
    key: str = "key"
    modalities: tuple[str, ...] = ()
    literal_text: tuple[str, ...] = ()


def read_table(source: Path, root: Path, columns: Columns, problems: Problems) -> list[Row]:
    """Return the rows of the CSV file `source`; problems of single rows are collected.

    Raises UserError if the file or its header cannot be used at all.
    """
    lines = _lines(source)
    header = next(lines, [])
    modalities = _modalities(source, header, columns)
    reader = _RowReader(root.resolve(), columns, modalities, problems)
    rows = []
    for number, line in enumerate(lines, 1):
        if len(line) != len(header):
            problems.add(f"row {number}: {len(line)} cells where the header has {len(header)}")
            continue
        rows.append(reader.read(number, dict(zip(header, line, strict=True))))
    return rows


def _lines(source: Path) -> Iterator[list[str]]:
    """Yield the lines that are not blank."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            yield from (line for line in csv.reader(file, strict=True) if line)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source} is not a CSV file in UTF-8: {error}") from None


def _modalities(source: Path, header: Sequence[str], columns: Columns) -> tuple[str, ...]:
    """Check the header, and return its modality columns."""
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{source}: column '{twice}' is there twice; rename one")
    for name in (columns.label, *columns.modalities, *columns.literal_text):
        if name not in header:
            raise UserError(f"{source}: no column '{name}'{nearest(name, header)}")
    own = (columns.label, columns.split, columns.key)
    chosen = columns.modalities or tuple(name for name in header if name not in own)
    if not chosen:
        raise UserError(f"{source}: no modality columns; expected a column of files a modality")
    for name in columns.literal_text:
        if name not in chosen:
            raise UserError(f"{source}: literal_text: '{name}' is not among the `columns`")
    for name in chosen:
        problem = modality_problem(name)
        if problem:
            raise UserError(f"{source}: column {problem}; rename it, or set `columns`")
    return chosen


class _RowReader:
    """Turns the cells of one row into a Row."""

    def __init__(
        self, root: Path, columns: Columns, modalities: tuple[str, ...], problems: Problems
    ) -> None:
        self.root, self.columns, self.modalities = root, columns, modalities
        self.problems = problems
        self.rows_of_keys: dict[str, int] = {}

    def read(self, number: int, cells: Mapping[str, str]) -> Row:
        files: dict[str, Path] = {}
        texts: dict[str, str] = {}
        for name in self.modalities:
            value = cells[name].strip()
            if value and not self._take_text(name, value, texts):
                self._take_file(number, name, value, files)
        if not any(cells[name].strip() for name in self.modalities):
            self.problems.add(f"row {number}: no modality is there, all its cells are empty")
        return Row(
            place=f"row {number}",
            key=self._key(number, cells),
            label=cells[self.columns.label].strip(),
            split=self._split(number, cells),
            files=files,
            texts=texts,
        )

    def _take_text(self, name: str, value: str, texts: dict[str, str]) -> bool:
        if name not in self.columns.literal_text or self._is_file(value):
            return False
        texts[name] = value
        return True

    def _is_file(self, value: str) -> bool:
        try:
            return (self.root / value).is_file()
        except (OSError, ValueError):  # a text may be too long for a path, or hold a zero byte
            return False

    def _take_file(self, number: int, name: str, value: str, files: dict[str, Path]) -> None:
        try:
            files[name] = resolve_file(self.root / value, self.root)
        except ValueError as error:
            hint = "" if (self.root / value).suffix else "; name text columns in `literal_text`"
            self.problems.add(f"row {number}, {name}: {self.root / value} {error}{hint}")

    def _key(self, number: int, cells: Mapping[str, str]) -> str:
        if self.columns.key not in cells:
            return f"{number:06d}"
        key = cells[self.columns.key].strip()
        if not _KEY.fullmatch(key):
            self.problems.add(
                f"row {number}: key '{key}': expected 1 to 100 letters, digits, _ and -"
            )
        elif key in self.rows_of_keys:
            self.problems.add(
                f"row {number}: key '{key}' is the key of row {self.rows_of_keys[key]} too"
            )
        self.rows_of_keys.setdefault(key, number)
        return key

    def _split(self, number: int, cells: Mapping[str, str]) -> str:
        if self.columns.split not in cells:
            return ""
        split = cells[self.columns.split].strip()
        if not _SPLIT.fullmatch(split):
            self.problems.add(f"row {number}: split '{split}': expected letters, digits, _ and -")
        return split
