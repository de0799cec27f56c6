"""ImageNet's files of labels: WordNet ids, class names, and which class a validation picture has.

Read are the forms in which they are usually found:

    LOC_synset_mapping.txt                   "n01440764 tench, Tinca tinca"
    ILSVRC2012_validation_ground_truth.txt   one number a line, 1..1000, of the devkit's own order
    meta.mat (devkit), map_clsloc.txt        which WordNet id such a number is
    LOC_val_solution.csv                     "ILSVRC2012_val_00048981,n03995372 85 1 499 272"
    any text "file wnid"                     "ILSVRC2012_val_00000001.JPEG n01751748"
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from outmodal.errors import UserError

WNID = re.compile(r"n\d{8}")
_ANYWHERE = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?![0-9])")
_TRUTH_LINE = re.compile(r"([^\s,]+)[\s,]+(n\d{8})(?![0-9])")
_NUMBERED = re.compile(r"_(\d{8})$")
_MAP_LINE = re.compile(r"(?:(n\d{8})\s+(\d+)|(\d+)\s+(n\d{8}))(?:\s|$)")


def wnid_in(text: str) -> str | None:
    """Return the WordNet id in a file's name, the last one of several; None without one.

    >>> wnid_in("ILSVRC2012_val_00000293_n01440764.JPEG")
    'n01440764'
    """
    found = _ANYWHERE.findall(text)
    return found[-1] if found else None


def read_names(path: Path) -> dict[str, str]:
    """WordNet id -> name, in the order of the file.

    Raises:
        UserError: The file cannot be read, or a line has another form.
    """
    names = {}
    for number, line in _lines(path, "--names"):
        wnid, _, name = line.partition(" ")
        if not WNID.fullmatch(wnid):
            raise UserError(
                f"--names {path}, line {number}: expected a WordNet id and a name, as "
                f"'n01440764 tench, Tinca tinca', got '{line[:60]}'"
            )
        names[wnid] = name.strip() or wnid
    return names


def read_plain_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Class names in the order of their numbers, and their WordNet ids where the file has them.

    Raises:
        UserError: The file cannot be read.
    """
    lines = [line for _, line in _lines(path, "--names")]
    if lines and WNID.fullmatch(lines[0].split(" ")[0]):
        names = read_names(path)
        return distinct(tuple(names), tuple(names.values())), tuple(names)
    return tuple(lines), None


def distinct(wnids: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Names with the WordNet id behind those that several classes have (two are "crane")."""
    count = Counter(names)
    return tuple(
        f"{name} ({wnid})" if count[name] > 1 else name
        for wnid, name in zip(wnids, names, strict=True)
    )


def named(wnids: Sequence[str], path: Path | None) -> tuple[str, ...]:
    """The names of classes; their WordNet ids without a file.

    Raises:
        UserError: The file lacks a class.
    """
    if path is None:
        return tuple(wnids)
    names = read_names(path)
    for wnid in wnids:
        if wnid not in names:
            raise UserError(
                f"--names {path} has no line for {wnid}, which the source has: give the file of "
                "all classes (LOC_synset_mapping.txt), or leave --names out"
            )
    return distinct(wnids, [names[wnid] for wnid in wnids])


class Truth:
    """Which class each validation picture has; made by `read_truth`."""

    def __init__(self, path: Path, by_stem: Mapping[str, str], by_number: Sequence[str]) -> None:
        self.path, self._by_stem, self._by_number = path, by_stem, by_number

    def wnid(self, file: str) -> str:
        """Return the WordNet id of a picture; UserError for one that the file does not have."""
        stem = PurePosixPath(file).stem
        found = self._by_stem.get(stem)
        number = _NUMBERED.search(stem)
        if self._by_number and number and 1 <= int(number[1]) <= len(self._by_number):
            found = self._by_number[int(number[1]) - 1]
        if found is None:
            held = len(self._by_stem) or len(self._by_number)
            raise UserError(
                f"--val_labels {self.path} has {held} lines, and none for {file}: give the file "
                "of these pictures, or sort them into folders by WordNet id"
            )
        return found


def read_truth(path: Path, synsets: Path | None) -> Truth:
    """Read a ground-truth file in one of the forms above.

    Args:
        path: The file.
        synsets: What the devkit's numbers stand for; meta.mat beside the file where it is None.

    Raises:
        UserError: A file cannot be read, or has another form.
    """
    lines = list(_lines(path, "--val_labels"))
    if lines and all(line.isdigit() for _, line in lines):
        known = read_synsets(synsets or path.parent / "meta.mat")
        return Truth(path, {}, [_known(known, int(line), path, n) for n, line in lines])
    by_stem = {}
    for number, line in lines:
        found = _TRUTH_LINE.match(line)
        if found is not None:
            by_stem[PurePosixPath(found[1]).stem] = found[2]
        elif number > 1:  # the first may be a heading
            raise UserError(
                f"--val_labels {path}, line {number}: expected a file and a WordNet id, or a "
                f"number alone on every line, got '{line[:60]}'"
            )
    return Truth(path, by_stem, [])


def _known(synsets: Mapping[int, str], number: int, path: Path, line: int) -> str:
    if number not in synsets:
        raise UserError(
            f"--val_labels {path}, line {line}: class {number} is none of the {len(synsets)} of "
            "--synsets: give the two files of one devkit"
        )
    return synsets[number]


def read_synsets(path: Path) -> dict[int, str]:
    """The devkit's number of a class -> WordNet id, from meta.mat or a text of the two.

    Raises:
        UserError: The file cannot be read, or has another form.
    """
    if path.suffix == ".mat":
        return _read_mat(path)
    found = {}
    for number, line in _lines(path, "--synsets"):
        match = _MAP_LINE.match(line)
        if match is None:
            raise UserError(
                f"--synsets {path}, line {number}: expected a WordNet id and the devkit's number, "
                f"as 'n02119789 1', got '{line[:60]}'"
            )
        found[int(match[2] or match[3])] = match[1] or match[4]
    return found


def _read_mat(path: Path) -> dict[int, str]:
    from scipy.io import loadmat

    try:
        table: Any = loadmat(io.BytesIO(path.read_bytes()), squeeze_me=True)["synsets"]
        ids, wnids = table["ILSVRC2012_ID"], table["WNID"]
        found = {int(i): str(w) for i, w in zip(ids, wnids, strict=True)}
    except FileNotFoundError:
        raise UserError(
            f"the devkit's numbers need {path}, which is not there: name meta.mat or a text of "
            "'n02119789 1' with --synsets"
        ) from None
    except (OSError, KeyError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise UserError(
            f"--synsets {path} is not the devkit's meta.mat ({error}): give that, or a text of "
            "'n02119789 1'"
        ) from None
    return {number: wnid for number, wnid in found.items() if WNID.fullmatch(wnid)}


def _lines(path: Path, option: str) -> list[tuple[int, str]]:
    """(number from 1, text) of the lines that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{option} {path} cannot be read: {why}") from None
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
