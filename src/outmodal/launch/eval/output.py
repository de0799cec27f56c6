"""What an evaluation leaves: a record in the run's folder, a CSV file, a table for people."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outmodal.data.cache import write_atomic
from outmodal.errors import UserError
from outmodal.launch.eval.targets import Target
from outmodal.train.results import COLUMNS, Evaluation

_log = logging.getLogger(__name__)


def record(task: str, target: Target, found: Evaluation) -> dict[str, Any]:
    """The JSON object of an evaluation."""
    source = target.encoder.source
    return {
        **found.record(task),
        "target": source.name,
        "checkpoint": getattr(source, "checkpoint", None),
        "data": target.data,
        "split": target.split,
    }


def record_path(task: str, target: Target) -> Path | None:
    """RUN/eval/TASK-SPLIT.json, or TASK-DATASET-SPLIT.json on other data; None without a run."""
    if target.run is None:
        return None
    parts = [task, target.split]
    if target.other:
        parts.insert(1, target.encoder.dataset.manifest.name)
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part) for part in parts)
    return target.run / "eval" / f"{name}.json"


def keep(path: Path | None, data: Mapping[str, Any]) -> None:
    """Write the record; a folder that cannot be written loses the record only."""
    if path is None:
        return
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())
    except OSError as error:
        _log.warning("cannot write %s: %s", path, error.strerror or error)


def check_csv(path: str) -> None:
    """Raise UserError, before anything is computed, where a CSV file cannot be written."""
    if not path:
        return
    file = Path(path)
    if file.is_dir():
        raise UserError(f"--csv {path} is a folder: name a file")
    if not file.parent.is_dir():
        raise UserError(f"--csv {path}: there is no folder {file.parent}: make it first")
    existed = file.exists()
    try:
        with file.open("ab"):
            pass
        if not existed:
            file.unlink()
    except OSError as error:
        raise UserError(
            f"--csv {path} cannot be written: {error.strerror or error}: name another file"
        ) from None


def write_csv(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write tidy rows; UserError where the disk refuses."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomic(Path(path), text.getvalue().encode())
    except OSError as error:
        raise UserError(f"--csv {path} cannot be written: {error.strerror or error}") from None


def as_text(data: Mapping[str, Any]) -> str:
    """A table of the metrics with their intervals, then of the classes."""
    metrics: Mapping[str, Any] = data["metrics"]
    listed = data["per_class"] if len(data["per_class"]) <= _LISTED else {}
    width = max([len("metric"), *map(len, metrics), *(2 + len(c) for c in listed)])
    lines = [f"{data['task']} of {data['target']} on {data['data']}, split {data['split']}"]
    for name in ("chosen_among", "note"):
        if name in data["settings"]:
            lines.append(f"{name.replace('_', ' ')}: {data['settings'][name]}")
    lines.append(f"{'metric':<{width}}  {'value':>8}  95 % interval      samples")
    lines += [_line(name, held, width) for name, held in metrics.items()]
    lines += [_line(f"  {name}", held, width) for name, held in listed.items()]
    if len(listed) < len(data["per_class"]):
        lines.append(f"({len(data['per_class'])} classes: --csv FILE writes each)")
    if data["confusion"] and len(data["classes"]) <= _SHOWN:
        lines += ["", *_confusion(data["classes"], data["confusion"])]
    return "\n".join(line.rstrip() for line in lines)


_SHOWN = 12  # classes of a confusion matrix that is printed
_LISTED = 50  # classes whose accuracies are printed


def _line(name: str, held: Mapping[str, Any], width: int) -> str:
    value = "-" if held["value"] is None else f"{held['value']:.4f}"
    between = "" if held["low"] is None else f"{held['low']:.4f} .. {held['high']:.4f}"
    samples = held["samples"] or ""
    return f"{name:<{width}}  {value:>8}  {between:<17}  {samples:>7}"


def _confusion(classes: Sequence[str], table: Sequence[Sequence[int]]) -> list[str]:
    """Rows are true classes, columns what was said."""
    names = [name[:10] for name in classes]
    width = max(6, *(len(name) + 1 for name in names))
    head = " " * 11 + "".join(f"{name:>{width}}" for name in names)
    rows = [
        f"{name:<11}" + "".join(f"{count:>{width}}" for count in row)
        for name, row in zip(names, table, strict=True)
    ]
    return ["true \\ said", head, *rows]
