"""Scalars that only TensorBoard's files hold: speed, waiting, checkpoints, hardware."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float | None]]
"""(step, value) in the order of steps; None where the value was not finite."""

_SPLITS = ("train/", "eval/", "epoch/", "diagnostics/")
_log = logging.getLogger(__name__)


def read_board(folder: Path) -> dict[str, Curve]:
    """Tag -> curve, without what metrics.jsonl has as well.

    A resumed run begins a new file, and what it writes again replaces the older values. A file
    that ends in the middle of a record is read up to there.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in _events(path):
            _take(event, found)
    return {
        tag: [(step, v if math.isfinite(v) else None) for step, v in sorted(values.items())]
        for tag, values in sorted(found.items())
        if values
    }


def _events(path: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.compat.tensorflow_stub.errors import OpError

    events: list[Any] = []
    try:
        for event in LegacyEventFileLoader(str(path)).Load():
            events.append(event)
    except (OpError, OSError, ValueError) as error:
        _log.warning("%s: read up to event %d (%s)", path, len(events), error)
    return events


def _take(event: Any, found: dict[str, dict[int, float]]) -> None:
    if event.HasField("session_log"):
        if event.session_log.status == event.session_log.START:
            for values in found.values():
                for step in [s for s in values if s >= event.step]:
                    del values[step]
        return
    for value in event.summary.value if event.HasField("summary") else ():
        if value.HasField("simple_value") and not value.tag.startswith(_SPLITS):
            found.setdefault(value.tag, {})[int(event.step)] = float(value.simple_value)
