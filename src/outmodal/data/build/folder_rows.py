"""The rows of a source of files: what a scan of a folder or of a table gives to the builder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from outmodal.data.manifest import RESERVED
from outmodal.errors import UserError

SHOWN = 10
"""Problems that a message spells out; the others are counted."""

_MODALITY = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SAME_TYPE = {"jpeg": "jpg", "tiff": "tif"}


@dataclass(frozen=True)
class Row:
    """One sample of a source.

    Attributes:
        place: Where it stands, for messages: "row 3", or "cat/0007".
        key: Its name in the shards.
        label: Its class as the source writes it, "" if it has none.
        split: Its split, "" if the source does not say.
        files: Modality -> file, links resolved.
        texts: Modality -> text that the source itself holds.
    """

    place: str
    key: str
    label: str
    split: str
    files: Mapping[str, Path]
    texts: Mapping[str, str] = field(default_factory=dict)


class Problems:
    """Collects everything that is wrong with a source, to say it at once."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.found: list[str] = []
        self._known: set[str] = set()

    def add(self, problem: str) -> None:
        """Note one problem; it names the row or the file, and the remedy if that is not plain."""
        if problem not in self._known:
            self._known.add(problem)
            self.found.append(problem)

    def check(self) -> None:
        """Raise UserError with the first problems if there are any."""
        if self.found:
            raise UserError(f"{self.source}: {listed(self.found)}")


def listed(problems: list[str]) -> str:
    """Return one problem as it is, several as a list of the first ones with their number."""
    if len(problems) == 1:
        return problems[0]
    lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
    more = len(problems) - SHOWN
    return f"{len(problems)} problems:{lines}" + (f"\n  and {more} more" if more > 0 else "")


def file_type(path: Path) -> str:
    """Return the extension in lower case, one for each type of file: jpg, not jpeg."""
    extension = path.suffix[1:].lower()
    return _SAME_TYPE.get(extension, extension)


def modality_problem(name: str) -> str | None:
    """Say why `name` cannot name a modality, or return None."""
    if name in RESERVED or not _MODALITY.fullmatch(name):
        return f"'{name}' cannot name a modality: use a-z, 0-9, _ and -, not {', '.join(RESERVED)}"
    return None


def resolve_file(path: Path, root: Path) -> Path:
    """Return `path` with its links followed, once it is known to be a readable file inside `root`.

    Args:
        path: The file.
        root: Folder, itself resolved, that may not be left.

    Raises ValueError that says what is wrong.
    """
    try:
        real = path.resolve(strict=True)
        size = real.stat().st_size
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"cannot be read ({error})") from None
    if not real.is_relative_to(root):
        raise ValueError(f"leads out of {root} to {real}; copy it into the source")
    if not real.is_file():
        raise ValueError("is not a file")
    if not os.access(real, os.R_OK):
        raise ValueError("cannot be read: permission denied")
    if not size:
        raise ValueError("is empty")
    return real
