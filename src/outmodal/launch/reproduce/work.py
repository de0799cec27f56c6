"""One cell: train, evaluate, and keep what was found beside the run.

    CELL/                         a run, as `outmodal train` makes it
    CELL/evaluation/probe-*.json    what an evaluation found, and with which settings
    CELL/log.txt                  what training had to say

A cell that was killed goes on from its newest checkpoint; one that is done is not repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outmodal.base import Config
from outmodal.data.cache import write_atomic
from outmodal.errors import StoppedEarly, UserError
from outmodal.launch.config import dump_config
from outmodal.launch.reproduce.cells import Cell
from outmodal.launch.reproduce.preparations import Preparation, ensure, ensure_all
from outmodal.train.combinations import Missing, Which
from outmodal.train.intervals import Bootstrap
from outmodal.train.probing import ProbeConfig
from outmodal.train.runfolder import changed_keys, untouched_keys

_NONE = Bootstrap(draws=0)  # a table has deviations over seeds


class Measure(Config):
    """How cells are evaluated; the same for all.

    Attributes:
        split: Split that is evaluated; "" is the run's evaluation split.
        probe: The probe; its seed is the cell's.
        subsets: Combinations; "" takes all of three modalities, and the ends of more, as the
            paper does.
        missing: What becomes of modalities that a combination leaves out.
    """

    split: str = ""
    probe: ProbeConfig = ProbeConfig()
    subsets: Which | None = None
    missing: Missing = "separate"


@dataclass(frozen=True)
class Order:
    """A cell to be worked on by a process of its own."""

    cell: Cell
    measure: Measure


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: The cell.
        metrics: What the evaluation found; empty where it did not get that far.
        problem: Why it failed, "" where it did not.
        stopped: It was stopped on request, after a checkpoint.
    """

    cell: Cell
    metrics: dict[str, float]
    problem: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class Prepared:
    """What became of a part that cells need.

    Attributes:
        part: The part.
        problem: Why it failed, "" where it did not.
        stopped: It was stopped on request, after a checkpoint.
    """

    part: Preparation
    problem: str = ""
    stopped: bool = False


def prepare(part: Preparation) -> Prepared:
    """Make a part that cells need; what it has to say goes to a file of its own."""
    try:
        part.folder.mkdir(parents=True, exist_ok=True)
        with _speaking_to(part.folder / "log.txt"):
            ensure(part)
    except UserError as error:
        return Prepared(part, str(error))
    except StoppedEarly as error:
        return Prepared(part, str(error), stopped=True)
    return Prepared(part)


def finished(cell: Cell, measure: Measure) -> dict[str, float] | None:
    """What was found about a cell before; None where this evaluation was not made of it, or of a
    run with other values."""
    try:
        record = json.loads(_record(cell, measure).read_bytes())
        begun = (cell.folder / "config.yaml").read_text("utf-8")
    except (FileNotFoundError, ValueError):
        return None
    same = record.get("request") == _request(cell, measure)
    config = cell.config
    if not same or changed_keys(begun, dump_config(config), untouched_keys(config)):
        return None
    return dict(record["metrics"])


def work(order: Order) -> Outcome:
    """Train and evaluate a cell; its training speaks to a file of its own.

    Whatever is wrong with one cell is its own affair: the others go on.
    """
    cell = order.cell
    try:
        cell.folder.mkdir(parents=True, exist_ok=True)
        with _speaking_to(cell.folder / "log.txt"):
            return Outcome(cell, measured(cell, order.measure))
    except UserError as error:
        return Outcome(cell, {}, str(error))
    except StoppedEarly as error:
        return Outcome(cell, {}, str(error), stopped=True)


def measured(cell: Cell, measure: Measure) -> dict[str, float]:
    """Train a cell, unless it is trained, and evaluate it, unless it is evaluated."""
    from outmodal.launch.running import run_plan
    from outmodal.train.run import train

    done = finished(cell, measure)
    if done is not None:
        return done
    ensure_all(cell.needs)
    train(run_plan(cell.config, cell.folder))
    metrics = _evaluated(cell, measure)
    record = {"request": _request(cell, measure), "metrics": metrics}
    path = _record(cell, measure)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, f"{json.dumps(record, indent=2)}\n".encode())
    return metrics


def _evaluated(cell: Cell, measure: Measure) -> dict[str, float]:
    from outmodal.launch.running import open_run
    from outmodal.train import encoder_tasks
    from outmodal.train.evaluation import evaluate_run
    from outmodal.train.missing import missing_task
    from outmodal.train.representations import open_encoder

    plan = open_run(cell.folder)[1]
    train, test = plan.data.train_split, measure.split or plan.data.eval_split
    probe = measure.probe.model_copy(update={"seed": cell.seed})
    if cell.task == "classify":
        return evaluate_run(plan, split=measure.split, bootstrap=_NONE).metrics
    with open_encoder(plan) as encoder:
        if cell.task == "missing":
            return missing_task(encoder, train, test, probe, bootstrap=_NONE).metrics
        if cell.task == "probe":
            return encoder_tasks.probe_task(encoder, train, test, probe).metrics
        if cell.task == "retrieve":
            return encoder_tasks.retrieve_task(encoder, test).metrics
        found = encoder_tasks.combinations_task(
            encoder, train, test, probe, which=_which(cell, measure), missing=measure.missing
        )
        return found.metrics


def _which(cell: Cell, measure: Measure) -> Which:
    return measure.subsets or ("all" if len(cell.modalities) <= 3 else "ends")


def _request(cell: Cell, measure: Measure) -> dict[str, Any]:
    """Everything that decides an evaluation beside the run."""
    asked: dict[str, Any] = {"task": cell.task, "split": measure.split}
    if cell.task not in ("retrieve", "classify"):
        asked["probe"] = measure.probe.model_copy(update={"seed": cell.seed}).model_dump()
    if cell.task == "combinations":
        asked |= {"subsets": _which(cell, measure), "missing": measure.missing}
    return asked


def _record(cell: Cell, measure: Measure) -> Path:
    text = json.dumps(_request(cell, measure), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return cell.folder / "evaluation" / f"{cell.task}-{digest}.json"


@contextlib.contextmanager
def _speaking_to(path: Path) -> Iterator[None]:
    """Send stdout and stderr of this process to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), saved, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        os.close(file)
