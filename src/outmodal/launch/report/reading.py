"""What a run's folder tells, also while it is being written. Nothing in it is changed."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from outmodal.errors import UserError
from outmodal.launch.report.board import Curve, read_board
from outmodal.launch.report.evaluations import Evaluated, read_evaluations

State = Literal["finished", "being written", "not finished"]


@dataclass(frozen=True)
class Line:
    """One line of metrics.jsonl; a value that was not finite is None."""

    step: int
    epoch: int
    stage: str
    split: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder shows it.

    Attributes:
        root: The folder.
        name: Short and different from those of the other runs of the page.
        config_text: config.yaml.
        config: The same, parsed.
        lines: Of metrics.jsonl.
        torn: The last line was not whole.
        board: What only TensorBoard has: tag -> (step, value) by step.
        state: Whether the run is done, and whether a process holds its folder now.
        checkpoints: Names, oldest first.
        evaluations: What `outmodal eval` left in the folder `eval`.
        refused: Names of files there that could not be read.
        changed: When metrics.jsonl was last written, seconds since 1970; 0 where there is none.
    """

    root: Path
    name: str
    config_text: str
    config: Mapping[str, Any]
    lines: Sequence[Line]
    torn: bool
    board: Mapping[str, Curve]
    state: State
    checkpoints: Sequence[str]
    changed: float
    evaluations: Sequence[Evaluated] = ()
    refused: Sequence[str] = ()

    @property
    def step(self) -> int:
        """The last step with a line."""
        return max((line.step for line in self.lines), default=0)

    def last(self, split: str) -> Mapping[str, float | None]:
        """The newest values of a split."""
        found = [line.values for line in self.lines if line.split == split]
        return found[-1] if found else {}


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read several runs.

    Raises:
        UserError: A folder is no run or is named twice, or a file of it is damaged.
    """
    roots = [folder.absolute() for folder in folders]
    for root in roots:
        if roots.count(root) > 1:
            raise UserError(f"{root} is named twice: name each run once")
    names = _short_names(roots)
    return [read_run(root, name) for root, name in zip(roots, names, strict=True)]


def read_run(root: Path, name: str) -> RunRecord:
    """Read one run; see `read_runs`."""
    path = root / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{root} is not a run: it has no config.yaml; give a folder that `outmodal train` wrote"
        )
    text = path.read_text("utf-8")
    lines, torn = read_lines(root / "metrics.jsonl")
    evaluations, refused = read_evaluations(root / "eval")
    return RunRecord(
        root=root,
        name=name,
        config_text=text,
        config=_parsed(text, path),
        lines=lines,
        torn=torn,
        board=read_board(root / "tensorboard"),
        state=_state(root),
        checkpoints=sorted(p.name for p in (root / "checkpoints").glob("step-*") if p.is_dir()),
        changed=_changed(root / "metrics.jsonl"),
        evaluations=evaluations,
        refused=refused,
    )


def read_lines(path: Path) -> tuple[list[Line], bool]:
    """The lines of metrics.jsonl, and whether the last was torn (and is left out): a run that
    is being written may have written half of it.

    Raises:
        UserError: Another line is damaged; names it.
    """
    if not path.is_file():
        return [], False
    rows = path.read_bytes().split(b"\n")
    whole, rest = rows[:-1], rows[-1]
    lines = []
    for number, row in enumerate(whole, 1):
        try:
            lines.append(_line(row))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}:{number} is no line of metrics: the file was changed by something else "
                "than a run. Restore it, or go on with the run from its checkpoint"
            ) from None
    return lines, bool(rest)


def _line(row: bytes) -> Line:
    raw = json.loads(row)
    values = {str(name): _finite(value) for name, value in raw["values"].items()}
    return Line(int(raw["step"]), int(raw["epoch"]), str(raw["stage"]), str(raw["split"]), values)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _parsed(text: str, path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no configuration: restore it, or name another run")
    return found


def _state(root: Path) -> State:
    if (root / "result.json").is_file():
        return "finished"
    return "being written" if _held(root / ".lock") else "not finished"


def _held(path: Path) -> bool:
    """Whether a process on this file system holds the run's lock."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no locks here: nobody can tell
    finally:
        os.close(handle)
    return False


def _changed(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _short_names(roots: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    deepest = max((len(root.parts) for root in roots), default=1)
    for parts in range(1, deepest + 1):
        names = ["/".join(root.parts[-parts:]) for root in roots]
        if len(set(names)) == len(names):
            return names
    return [str(root) for root in roots]
