"""Where released weights come from: a path, or a hub id where downloading is allowed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from outmodal.errors import UserError

_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Home:
    """The public home of a family of checkpoints.

    Attributes:
        what: Name of the family.
        files: What to download, in words.
        page: Where.
        licence: Under which terms, in words.
        patterns: Names of weight files in a folder, in order of preference.
    """

    what: str
    files: str
    page: str
    licence: str
    patterns: tuple[str, ...]

    def refusal(self, path: str, why: str) -> UserError:
        """An error that says what to put where."""
        place = Path(path).expanduser().absolute()
        folder = place.parent if place.suffix in _FILES else place
        return UserError(
            f"{self.what}: {why}. Download {self.files} from {self.page} (licence: {self.licence}) "
            f"into the folder {folder}, or into any other and set the perceptor's path to it"
        )


def find_weights(path: str, home: Home, allow_download: bool) -> list[Path]:
    """Return the weight files at `path`: a file, a folder with them, or a hub id.

    Files of an id that an earlier download left in the local cache need no permission.

    Raises:
        UserError: There are none; says what to download from where, and under which licence.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return [local]
    folder = local if local.is_dir() else _snapshot(path, home, allow_download)
    for pattern in home.patterns:
        files = _indexed(folder, pattern) or sorted(folder.glob(pattern))
        if files:
            return files
    raise home.refusal(path, f"{folder} has no file {' or '.join(home.patterns)}")


def _indexed(folder: Path, pattern: str) -> list[Path]:
    """Return the files that a checkpoint's index names, none if it has no index."""
    index = folder / f"{pattern.replace('*', '')}.index.json"
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = sorted(folder / Path(name).name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} cannot be read: download it again") from None
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}, which {index.name} names: download")
    return files


def _snapshot(path: str, home: Home, allow_download: bool) -> Path:
    """Return the local copy of a hub id's files."""
    if not _ID.fullmatch(path):
        raise home.refusal(path, f"{path} does not exist")
    try:
        return Path(
            snapshot_download(
                path,
                local_files_only=not allow_download,
                allow_patterns=[*home.patterns, "*.json", "*.txt"],
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        why = f"'{path}' is no file or folder, and as a hub id its files are not on this machine"
        if allow_download:
            why += f" and could not be downloaded ({type(error).__name__})"
        else:
            why += " and allow_download is false"
        raise home.refusal(path, why) from None
