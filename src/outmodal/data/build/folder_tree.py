"""Rows from a directory tree: one folder a class, with or without a folder a split above.

    SOURCE/[SPLIT/]CLASS/0007.png, 0007.wav             files of one stem are one sample
    SOURCE/[SPLIT/]CLASS/MODALITY/0007.png              the same, a folder a modality

In the first form a modality is called image, audio, video or text after its files, array for
npy, or as the extension if that is not known (then `kinds` must say what it holds).

The top folders are splits if all of them are called train, val, valid, validation, dev or test.
Hidden files, and files that lie beside the class folders, are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from outmodal.data.build.folder_kinds import KINDS
from outmodal.data.build.folder_rows import (
    Problems,
    Row,
    file_type,
    modality_problem,
    resolve_file,
)
from outmodal.errors import UserError

SPLITS = ("train", "val", "valid", "validation", "dev", "test")

_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 48


def read_tree(source: Path, problems: Problems) -> list[Row]:
    """Return the samples below `source` in the order of their paths; problems are collected."""
    root = source.resolve()
    rows: list[Row] = []
    for split, folder in _split_folders(source, root, problems):
        classes = _folders(folder, root, problems)
        if not classes:
            problems.add(f"{folder} has no class folders; expected one folder a class")
        for class_folder in classes:
            for stem, files in sorted(_samples(class_folder, root, problems).items()):
                place = f"{class_folder.relative_to(source)}/{stem}"
                name = _NOT_IN_KEYS.sub("_", stem)[:_LONGEST_NAME]
                key = f"{len(rows):06d}-{name}"
                rows.append(Row(place, key, class_folder.name, split, files))
    return rows


def _split_folders(source: Path, root: Path, problems: Problems) -> list[tuple[str, Path]]:
    """Return (split, folder of its classes); one pair with "" if there are no splits."""
    folders = _folders(source, root, problems)
    splits = [folder for folder in folders if folder.name in SPLITS]
    if splits and len(splits) == len(folders):
        return [(folder.name, folder) for folder in folders]
    if len(splits) > 1:  # one alone is a class: there are trains among vehicles
        other = next(folder.name for folder in folders if folder.name not in SPLITS)
        problems.add(
            f"'{splits[0].name}' and '{splits[1].name}' look like splits, '{other}' does not; "
            f"call all top folders one of {', '.join(SPLITS)}, or move '{other}' away"
        )
    return [("", source)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def _folders(folder: Path, root: Path, problems: Problems) -> list[Path]:
    """Return the folders in `folder`, without those that links lead out of the source to."""
    inside = []
    for entry in _entries(folder):
        if not entry.is_dir():
            continue
        if entry.resolve().is_relative_to(root):
            inside.append(entry)
        else:
            problems.add(f"{entry} leads out of the source; copy the folder into it")
    return inside


def _samples(folder: Path, root: Path, problems: Problems) -> dict[str, dict[str, Path]]:
    """Return stem -> modality -> file of one class folder."""
    samples: dict[str, dict[str, Path]] = {}
    for modality, path in _files(folder, root, problems):
        try:
            real = resolve_file(path, root)
        except ValueError as error:
            problems.add(f"{path} {error}")
            continue
        files = samples.setdefault(path.stem, {})
        if modality in files:
            problems.add(
                f"{path}: sample '{path.stem}' has two files for modality '{modality}'; "
                "rename one, or put each modality into a folder of its own"
            )
        files[modality] = real
    return samples


def _files(folder: Path, root: Path, problems: Problems) -> Iterator[tuple[str, Path]]:
    """Yield (modality, file) of one class folder in either of its two forms."""
    entries, folders = _entries(folder), _folders(folder, root, problems)
    if not folders:
        for path in entries:
            extension = file_type(path)
            default = "array" if extension == "npy" else extension
            yield KINDS.get(extension, default), path
        return
    if any(not entry.is_dir() for entry in entries):
        problems.add(f"{folder} holds files and folders; expected files, or a folder a modality")
    for modality_folder in folders:
        problem = modality_problem(modality_folder.name)
        if problem:
            problems.add(f"{modality_folder}: {problem}")
            continue
        for path in _entries(modality_folder):
            yield modality_folder.name, path
