"""From run folders to a page on the disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outmodal.data.cache import write_atomic
from outmodal.errors import UserError
from outmodal.launch.report.embedding import Map, embedding_map
from outmodal.launch.report.latents import joined
from outmodal.launch.report.measure import Measured, measure
from outmodal.launch.report.page import Contents, render
from outmodal.launch.report.reading import RunRecord, read_runs
from outmodal.launch.running import open_run

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Attributes:
        path: The file.
        size: Its bytes.
        runs: Name -> state of each run.
        missing: Name -> why a run was not measured.
    """

    path: Path
    size: int
    runs: dict[str, str]
    missing: dict[str, str]


def write_report(folders: Sequence[Path], out: Path | None, samples: int, evaluate: bool) -> Report:
    """Read runs, measure their newest checkpoints, and write the page.

    Args:
        folders: The runs, at least one.
        out: The file; None is report.html in the first run.
        samples: Samples of the evaluation split to measure at most; 0 is all.
        evaluate: False leaves the checkpoints alone.

    Raises:
        UserError: A folder is no run, or the file cannot be written.
    """
    path = _target(out or folders[0] / "report.html")
    runs = read_runs(folders)
    measured: dict[str, Measured] = {}
    maps: dict[str, Map] = {}
    missing: dict[str, str] = {}
    for run in runs:
        try:
            found = _measured(run, samples, evaluate)
        except UserError as error:
            _log.warning("%s: not evaluated: %s", run.name, error)
            missing[run.name] = str(error)
            continue
        measured[run.name] = found
        laid_out = embedding_map(found)
        if laid_out is not None:
            maps[run.name] = laid_out
    contents = Contents(runs, measured, maps, missing, joined(runs, measured))
    text = render(contents).encode()
    _write(path, text)
    return Report(path, len(text), {run.name: run.state for run in runs}, missing)


def _measured(run: RunRecord, samples: int, evaluate: bool) -> Measured:
    if not evaluate:
        raise UserError("the report was asked not to evaluate")
    try:
        return measure(open_run(run.root)[1], samples)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is gone: a run may be removing old checkpoints"
        ) from error


def _target(path: Path) -> Path:
    path = path.absolute()
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {path}: name an .html file, for instance {path}/report.html")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file in it")
    return path


def _write(path: Path, text: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose another file with --out"
        ) from error
