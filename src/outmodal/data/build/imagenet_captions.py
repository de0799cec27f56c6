"""Captions of pictures, from a file of JSON lines.

    {"file": "train/n01440764/n01440764_10026.JPEG", "caption": "A fish in a hand."}

In place of "file" a line may have "key", the sample's name in the shards. Folders before the file's
own, and suffixes, need not be there or agree.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from outmodal.errors import UserError

_AMBIGUOUS = ""


class Captions:
    """What a file says of pictures.

    Attributes:
        path: The file.
        sha256: Of its bytes.
        lines: How many captions it holds.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; UserError that names the line for one of another form."""
        self.path, self.lines = path, 0
        self._of: dict[str, str] = {}
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    digest.update(line)
                    if line.strip():
                        self._take(line, number)
        except OSError as error:
            raise UserError(f"--captions {path} cannot be read: {error.strerror}") from None
        self.sha256 = digest.hexdigest()

    def find(self, key: str, file: str) -> str | None:
        """Return the caption of a sample, None without one.

        Args:
            key: Its name in the shards.
            file: Its path in the source.
        """
        path = PurePosixPath(file)
        for name in (f"={key}", f"{path.parent.name}/{path.stem}", path.stem):
            if self._of.get(name):
                return self._of[name]
        return None

    def _take(self, line: bytes, number: int) -> None:
        try:
            entry: Any = json.loads(line)
            caption, name = entry["caption"], entry.get("key") or entry["file"]
        except (ValueError, KeyError, TypeError, AttributeError):
            caption = name = None
        if not isinstance(caption, str) or not isinstance(name, str) or not caption.strip():
            raise UserError(
                f"--captions {self.path}, line {number}: expected JSON as "
                '{"file": "n01440764/n01440764_10026.JPEG", "caption": "A fish in a hand."}'
            )
        self.lines += 1
        if "key" in entry:
            self._of[f"={name}"] = caption.strip()
            return
        path = PurePosixPath(name)
        if path.parent.name:
            self._of[f"{path.parent.name}/{path.stem}"] = caption.strip()
        known = self._of.setdefault(path.stem, caption.strip())
        if known != caption.strip():
            self._of[path.stem] = _AMBIGUOUS
