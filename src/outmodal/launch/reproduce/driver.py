"""All cells of a plan, several at a time, each in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from outmodal.data.build.pool import in_fresh_processes
from outmodal.errors import StoppedEarly
from outmodal.launch.reproduce.cells import Cell
from outmodal.launch.reproduce.preparations import Encoders, Preparation
from outmodal.launch.reproduce.work import (
    Measure,
    Order,
    Outcome,
    finished,
    prepare,
    work,
)

_PRELOADED = (
    "outmodal.launch.reproduce.work",
    "outmodal.train.run",
    "outmodal.train.encoder_tasks",
)
_AGAIN = "run the same command again to go on"

Report = Callable[[Outcome | None, int, int], None]
"""Takes what became of a cell (None at the start), cells done, cells in all."""


def run_cells(
    cells: Sequence[Cell], measure: Measure, jobs: int, report: Report
) -> dict[int, Outcome]:
    """Work on all cells that are not done; return what became of each, by its number.

    Args:
        cells: The plan.
        measure: How they are evaluated.
        jobs: Processes at a time.
        report: Called at the start and after each cell.

    Raises:
        StoppedEarly: A signal asked for it; the cells at work wrote a checkpoint.
    """
    outcomes = {
        cell.number: Outcome(cell, metrics)
        for cell in cells
        if (metrics := finished(cell, measure)) is not None
    }
    report(None, len(outcomes), len(cells))
    rest = [cell for cell in cells if cell.number not in outcomes]
    with stopping():
        failed = _prepared(rest, jobs)
        for cell in rest:
            why = next((failed[part] for part in cell.needs if part in failed), "")
            if why:
                outcomes[cell.number] = Outcome(cell, {}, why)
                report(outcomes[cell.number], len(outcomes), len(cells))
        orders = [Order(cell, measure) for cell in rest if cell.number not in outcomes]
        for done in in_fresh_processes(work, orders, jobs, _name, _PRELOADED):
            outcomes[done.cell.number] = done
            report(done, len(outcomes), len(cells))
            if done.stopped:
                raise StoppedEarly(f"cell {done.cell.number}: {done.problem}; {_AGAIN}")
    return outcomes


def _prepared(cells: Sequence[Cell], jobs: int) -> dict[Preparation, str]:
    """Make what the cells need, encoders before features; return why which failed."""
    needs = dict.fromkeys(part for cell in cells for part in cell.needs if not part.done())
    before = {part: cell.needs for cell in reversed(cells) for part in cell.needs}
    failed: dict[Preparation, str] = {}
    for first in (True, False):
        parts = [p for p in needs if isinstance(p, Encoders) == first]
        parts = [p for p in parts if not any(other in failed for other in before[p])]
        for done in in_fresh_processes(prepare, parts, jobs, _part_name, _PRELOADED):
            if done.stopped:
                raise StoppedEarly(f"{done.part.folder}: {done.problem}; {_AGAIN}")
            if done.problem:
                failed[done.part] = f"{done.part.what} ({done.part.folder}): {done.problem}"
    return failed


def _part_name(part: Preparation) -> str:
    return f"preparation {part.folder}"


def _name(order: Order) -> str:
    return f"cell {order.cell.number} ({order.cell.folder})"


@contextmanager
def stopping() -> Iterator[None]:
    """Turn a request to end into StoppedEarly, so that the cells at work are ended in order; more
    requests do not interrupt that."""
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            return
        asked = True
        raise StoppedEarly(f"stopped by {signal.Signals(number).name}: {_AGAIN}")

    kinds = (signal.SIGTERM, signal.SIGUSR1)
    before = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
