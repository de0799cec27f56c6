"""How well a run was fed, and what it used of the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from outmodal.launch.report import figures
from outmodal.launch.report.board import Curve
from outmodal.launch.report.charts import Chart, Charts, Series
from outmodal.launch.report.markup import Markup, join, table, tag
from outmodal.launch.report.reading import RunRecord

_SPEED, _SKIPPED = "speed/steps_per_s", "data/skipped"
_WAITS = ("data/waiting_percent", "speed/data_wait_%")
"""Today's tag, and that of runs before it; a run has one of them, or both in turn."""

_HARDWARE = (
    ("memory", "Memory", "Most so far, in MiB.", ("hardware/host_MiB", "hardware/gpu_MiB")),
    ("cores", "Processor cores in use", "Processor seconds a second.", ("hardware/cpu_cores",)),
    (
        "checkpoints",
        "Cost of checkpoints",
        "Seconds; training stands still for the stall only.",
        ("checkpoint/stall_s", "checkpoint/snapshot_s", "checkpoint/write_s"),
    ),
    ("size", "Size of checkpoints", "MiB.", ("checkpoint/MiB",)),
)


def stream(runs: Sequence[RunRecord]) -> Markup:
    """Throughput, time that data were waited for, samples that could not be read."""
    head = ["", *[run.name for run in runs]]
    rows = [
        ["Steps a second, median", *[_median(run.board.get(_SPEED)) for run in runs]],
        ["Samples a second and stream, median", *[_samples(run) for run in runs]],
        ["Waiting for data, mean %", *[_mean(_waiting(run)) for run in runs]],
        ["Corrupt samples skipped", *[_skipped(run) for run in runs]],
    ]
    drawn = Charts(runs)
    return join(
        [
            table("Medians and means over what was logged", head, rows, class_="numbers"),
            tag(
                "p",
                "Of the main process. Skipped samples were counted from its last start.",
                class_="hint",
            ),
            figures.charts(
                [
                    *drawn.board("speed", "Speed", "Steps a second.", [_SPEED]),
                    *_waits(runs),
                    *drawn.board("skipped", "Corrupt samples skipped", "So far.", [_SKIPPED]),
                ]
            ),
        ]
    )


def hardware(runs: Sequence[RunRecord]) -> Markup:
    """Memory, processor time and what checkpoints cost, as far as the runs recorded them."""
    drawn = Charts(runs)
    found: list[Chart] = []
    for key, title, note, tags in _HARDWARE:
        found += drawn.board(key, title, note, tags)
    if not found:
        return tag("p", "These runs recorded nothing about the machine.")
    note = "Of the main process; its loader workers count once they have ended."
    return join([tag("p", note, class_="hint"), figures.charts(found)])


def _waiting(run: RunRecord) -> Curve:
    found = {step: value for tag in reversed(_WAITS) for step, value in run.board.get(tag, ())}
    return sorted(found.items())


def _waits(runs: Sequence[RunRecord]) -> list[Chart]:
    title = "Waiting for data"
    lines = [(run.name if len(runs) > 1 else title, _waiting(run)) for run in runs]
    series = [Series(name, points) for name, points in lines if points]
    return [Chart("wait", title, "Per cent of the time.", series)] if series else []


def _finite(curve: Curve | None) -> list[float]:
    return sorted(v for _, v in curve or () if v is not None)


def _median(curve: Curve | None) -> str:
    values = _finite(curve)
    return f"{values[len(values) // 2]:.4g}" if values else "–"


def _mean(curve: Curve | None) -> str:
    values = _finite(curve)
    return f"{math.fsum(values) / len(values):.3g}" if values else "–"


def _samples(run: RunRecord) -> str:
    data, values = run.config.get("data"), _finite(run.board.get(_SPEED))
    batch = data.get("batch") if isinstance(data, dict) else None
    if not isinstance(batch, int) or not values:
        return "–"
    return f"{values[len(values) // 2] * batch:.4g}"


def _skipped(run: RunRecord) -> str:
    curve = run.board.get(_SKIPPED)
    return f"{curve[-1][1]:.0f}" if curve and curve[-1][1] is not None else "not recorded"
