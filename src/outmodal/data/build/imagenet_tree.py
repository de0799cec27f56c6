"""Pictures that lie in folders: what is there, under which keys, in which order."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from outmodal.errors import UserError

PICTURES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of pictures, in lower case; other files are left out and counted."""

_THREADS = 16  # asking a file system for sizes is waiting, above all where it is remote
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")
_VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}")
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class File:
    """A picture's file.

    Attributes:
        path: Relative to the source, with forward slashes.
        size: In bytes.
        label: Its class.
        key: Its name in the shards.
    """

    path: str
    size: int
    label: int
    key: str


@dataclass
class Scan:
    """What was found beside pictures.

    Attributes:
        stray: Files that are no pictures by their suffix.
        empty: Folders of classes without pictures.
        renamed: Pictures whose key had to be numbered, since another one has it.
    """

    stray: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    renamed: int = 0

    def record(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "stray_files": len(self.stray),
            "first_stray_files": sorted(self.stray)[:_SHOWN],
            "empty_folders": sorted(self.empty),
            "renamed": self.renamed,
        }


def folders_in(root: Path, place: str) -> list[str]:
    """Names of the folders in root/place, hidden ones left out, sorted; UserError if unreadable."""
    return sorted(e.name for e in _entries(root / place) if e.is_dir() and e.name[0] != ".")


def pictures_in(root: Path, place: str, scan: Scan) -> list[tuple[str, int]]:
    """(name, bytes) of the pictures in the folder root/place, not below it."""
    found = []
    for entry in _entries(root / place):
        hidden = entry.name[0] == "."  # ._x.JPEG is what a Mac leaves beside x.JPEG
        suffix = PurePosixPath(entry.name).suffix.lower()
        if not hidden and suffix in PICTURES and not entry.is_dir():
            found.append((entry.name, _size(entry)))
        else:
            scan.stray.append(f"{place}/{entry.name}")
    return found


def classified(root: Path, folders: Mapping[str, int], scan: Scan) -> list[File]:
    """The pictures in folders of classes, in the order of their keys.

    Args:
        root: The source.
        folders: Folder, relative to the source -> class.
        scan: Takes what else is there.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(lambda place: pictures_in(root, place, scan), folders)
        found = dict(zip(folders, parts, strict=True))
    scan.empty += [place for place, pictures in found.items() if not pictures]
    return ordered(
        (
            (f"{place}/{name}", size, folders[place], key_of(PurePosixPath(place).name, name))
            for place, pictures in found.items()
            for name, size in pictures
        ),
        scan,
    )


def key_of(folder: str, name: str) -> str:
    """The key of a picture: its own name with its folder's, where that does not begin with it.

    >>> key_of("n01440764", "n01440764_10026.JPEG"), key_of("n01443537", "art_0.jpg")
    ('n01440764_10026', 'n01443537_art_0')
    """
    stem = _UNFIT.sub("_", PurePosixPath(name).stem).strip("_") or "picture"
    own = stem.startswith(f"{folder}_") or _VALIDATION.fullmatch(stem)
    return stem if own or not folder else f"{folder}_{stem}"


def ordered(found: Iterable[tuple[str, int, int, str]], scan: Scan) -> list[File]:
    """Sort (path, size, label, key) by key, and number the keys that come more than once."""
    rows = sorted(found, key=lambda row: (row[3], row[0]))
    used: Counter[str] = Counter()
    files = []
    for path, size, label, key in rows:
        used[key] += 1
        scan.renamed += used[key] > 1
        files.append(File(path, size, label, key if used[key] == 1 else f"{key}-{used[key]}"))
    return files


def digest(splits: Mapping[str, Iterable[File]]) -> str:
    """The sha256 of names, sizes, classes and keys of all pictures."""
    whole = hashlib.sha256()
    for split, files in splits.items():
        whole.update(f"{split}\n".encode())
        for file in files:
            line = f"{file.path}\0{file.size}\0{file.label}\0{file.key}\n"
            whole.update(line.encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from None


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:
        raise UserError(f"{entry.path} cannot be read: {error.strerror or error}") from None
