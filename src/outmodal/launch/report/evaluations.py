"""What `outmodal eval` left in RUN/eval/*.json, as tables and as curves over rates and severities.

Nothing is measured here: the page shows what was asked for, with the intervals that were drawn
then, and says of which checkpoint it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outmodal.launch.report.board import Curve

FORMAT = 1
_FIELDS = ("metric", "modality", "combination", "corruption", "severity", "rate")


@dataclass(frozen=True)
class Row:
    """One number of an evaluation.

    Attributes:
        place: Field -> value, those of `_FIELDS` that say something.
        value: None where it was not finite.
        low, high: Ends of its interval, or None.
    """

    place: Mapping[str, str | float]
    value: float | None
    low: float | None
    high: float | None

    def name(self, without: str = "") -> str:
        """Its fields in words, in one order."""
        parts = [_word(key, self.place[key]) for key in _FIELDS if key in self.place]
        return ", ".join(part for part in parts if part and not part.startswith(f"{without} "))


@dataclass(frozen=True)
class Evaluated:
    """One file of a run's folder `eval`.

    Attributes:
        file: Its name.
        task, split, data: What was evaluated, on what.
        checkpoint: Name; "" where the file does not say.
        samples: How many there were.
        rows: The numbers.
        per_class: Class -> its accuracy.
        settings: Keys of the task.
    """

    file: str
    task: str
    split: str
    data: str
    checkpoint: str
    samples: int
    rows: Sequence[Row]
    per_class: Mapping[str, Row]
    settings: Mapping[str, Any]


def read_evaluations(folder: Path) -> tuple[list[Evaluated], list[str]]:
    """The evaluations of a run, and the names of files that are none: one that is being written,
    or that something else put there."""
    found, refused = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_evaluated(path.name, json.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            refused.append(path.name)
    return found, refused


def _evaluated(name: str, raw: Mapping[str, Any]) -> Evaluated:
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']}")
    return Evaluated(
        file=name,
        task=str(raw["task"]),
        split=str(raw["split"]),
        data=str(raw["data"]),
        checkpoint=str(raw.get("checkpoint") or ""),
        samples=int(raw["samples"]),
        rows=tuple(_row(row, _FIELDS) for row in raw["rows"] if row.get("class") is None),
        per_class={str(k): _row(v, ()) for k, v in (raw.get("per_class") or {}).items()},
        settings=dict(raw.get("settings") or {}),
    )


def _row(raw: Mapping[str, Any], fields: Sequence[str]) -> Row:
    place = {key: raw[key] for key in fields if raw.get(key) is not None}
    return Row(place, *[_finite(raw.get(end)) for end in ("value", "low", "high")])


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _word(key: str, value: str | float) -> str:
    if key in ("severity", "rate"):
        return f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
    return str(value)


def series(evaluation: Evaluated, over: str) -> dict[str, dict[str, Curve]]:
    """Metric -> line -> its points over "rate" or "severity", from the lowest; only lines of two
    points and more. A single point at 0, of inputs as they are, begins all lines of its metric."""
    found: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for row in evaluation.rows:
        at = row.place.get(over)
        if isinstance(at, int | float):
            metric = str(row.place.get("metric", ""))
            rest = Row({k: v for k, v in row.place.items() if k != "metric"}, None, None, None)
            line = rest.name(without=over) or metric
            found.setdefault(metric, {}).setdefault(line, []).append((float(at), row.value))
    drawn = {metric: _begun(lines) for metric, lines in found.items()}
    return {metric: lines for metric, lines in drawn.items() if lines}


def _begun(lines: Mapping[str, Sequence[tuple[float, float | None]]]) -> dict[str, Curve]:
    start = next((p[0] for p in lines.values() if len(p) == 1 and p[0][0] == 0), None)
    drawn: dict[str, Curve] = {}
    for line, points in lines.items():
        if len(points) == 1 and points[0] == start:
            continue
        begins = start is not None and all(x > 0 for x, _ in points)
        whole = [start, *points] if start is not None and begins else points
        if len(whole) > 1:
            drawn[line] = sorted(whole)
    return drawn
