"""`outmodal reproduce TABLE`: the rows of a paper's table on the user's data, cell by cell."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outmodal.data.cache import write_atomic
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.errors import UserError
from outmodal.launch.arguments import parse, progress_bar
from outmodal.launch.cli import Outcome
from outmodal.launch.reproduce.cells import Cell, Plan, Request, parse_changes, plan_table
from outmodal.launch.reproduce.feeds import read_perceptors
from outmodal.launch.reproduce.table import TableSpec, chosen_rows, load_table, table_names
from outmodal.launch.reproduce.work import Measure, finished, measured
from outmodal.launch.reproduce.work import Outcome as CellOutcome
from outmodal.train.combinations import Missing, Which
from outmodal.train.probing import ProbeConfig

_EXAMPLE = """outmodal reproduce ova-ib-table1 --data six-view --seeds 3 --out tables --nproc_jobs 2
         outmodal reproduce cox-table3 --data DATASET --perceptors image=DIR text=DIR
         outmodal reproduce ova-ib-table1 --data DATASET --modalities a b c --modalities a b c d
         outmodal reproduce ova-ib-table2 --data six-view --out tables --plan"""


@dataclass(frozen=True)
class ReproduceArgs:
    """Fill a table of a paper on your data: one training run for each row, set of modalities and
    seed, all of the same length, then the table's evaluation, mean and deviation over seeds.
    What is done is not repeated: run the same command again to go on."""

    table: str = ""
    """Name of the table."""
    data: str = ""
    """Data set."""
    out: Path | None = None
    """Folder for runs and tables; tables in one folder share their runs."""
    seeds: int = 3
    """Seeds 0 .. K-1 of each row and column."""
    objectives: tuple[str, ...] = ()
    """Rows of the table to fill; all where none is named."""
    recipe: str = ""
    """Learners, optimizer and length of all runs; chosen by the data set's name where empty.
    Modalities without a learner in it get a small one of their kind."""
    epochs: int = 0
    """Epochs of all runs; 0 is the recipe's."""
    steps: int = 0
    """Most optimizer steps of all runs; 0 is no limit."""
    set: tuple[str, ...] = ()
    """KEY=VALUE for all runs, of optim, engine and data: --set optim.lr=3e-4 data.batch=128."""
    split: str = ""
    """Split that is evaluated; the recipe's where empty."""
    perceptors: tuple[str, ...] = ()
    """Frozen encoders of known and helping modalities, as for `outmodal embed`: MODALITY=FOLDER of
    an export or of a transformers model; MODALITY=stored takes vectors as they are. Where none is
    named for a modality, one is trained first, on the same data."""
    prepare_epochs: int = 10
    """Epochs of the encoders that are trained first."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The probe of all rows."""
    subsets: Which | None = None
    """Combinations; all of three modalities, and single ones and all together of more, where it
    is left out."""
    missing: Missing = "separate"
    """Combinations: see `outmodal eval`."""
    nproc_jobs: int = 1
    """Cells at a time, a process of one thread each."""
    plan: bool = False
    """List the cells and do nothing."""
    show: bool = False
    """Write the table of what is done, and train nothing."""
    cell: int | None = None
    """Work on this cell alone, by its number in --plan: for job arrays."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    columns, rest = _columns(list(argv))
    flags = [a for a in rest if a not in _SWITCHES]
    switched = {_SWITCHES[a] for a in rest if a in _SWITCHES}
    if flags and not flags[0].startswith("-"):
        flags = ["--table", *flags]
    example = f"{_EXAMPLE}\n\ntables: {', '.join(table_names())}"
    args: ReproduceArgs = parse(ReproduceArgs, flags, prog="outmodal reproduce", example=example)
    table, dataset, request = _read(args, columns)
    plan = plan_table(table, dataset, request)
    measure = Measure(
        split=args.split, probe=args.probe, subsets=args.subsets, missing=args.missing
    )
    _check_answers(dataset, plan.cells[0], measure)
    if args.plan or "plan" in switched:
        return _listed(plan, measure)
    if args.cell is not None:
        return _one(plan.cells, measure, args.cell)
    return _all(args, table, plan, measure, request, only_show=args.show or "show" in switched)


def _read(
    args: ReproduceArgs, columns: Sequence[tuple[str, ...]]
) -> tuple[TableSpec, Dataset, Request]:
    if not args.table:
        raise UserError(f"name a table: {', '.join(table_names())} (see outmodal reproduce --help)")
    table = load_table(args.table)
    if not args.data:
        raise UserError(f"--data is missing: name the data set ({_EXAMPLE.splitlines()[0]})")
    for name, value, least in (
        ("--seeds", args.seeds, 1),
        ("--nproc_jobs", args.nproc_jobs, 1),
        ("--epochs", args.epochs, 0),
        ("--prepare_epochs", args.prepare_epochs, 1),
        ("--steps", args.steps, 0),
    ):
        if value < least:
            raise UserError(f"{name} {value}: give {least} or more")
    changes = parse_changes(args.set)
    if args.epochs:
        changes["engine.epochs"] = args.epochs
    if args.steps:
        changes["engine.max_steps"] = args.steps
    dataset = open_dataset(args.data)
    request = Request(
        out=args.out or Path("tables"),
        rows=chosen_rows(table, args.objectives),
        columns=columns,
        seeds=args.seeds,
        recipe=args.recipe,
        changes=changes,
        perceptors=read_perceptors(args.perceptors, table, dataset),
        prepare_epochs=args.prepare_epochs,
    )
    return table, dataset, request


def _columns(argv: list[str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Take every `--modalities a b c` out of the arguments."""
    columns: list[tuple[str, ...]] = []
    rest: list[str] = []
    while argv:
        arg = argv.pop(0)
        if arg != "--modalities":
            rest.append(arg)
            continue
        column = []
        while argv and not argv[0].startswith("-"):
            column.append(argv.pop(0))
        columns.append(tuple(column))
    return columns, rest


def _check_answers(dataset: Dataset, cell: Cell, measure: Measure) -> None:
    """Refuse data without labels before anything is trained, where the task asks for some."""
    from outmodal.data.labels import read_labels
    from outmodal.data.shards import scan_shard

    data = cell.config.data
    for split in (data.train_split, measure.split or data.eval_split):
        shards = dataset.split(split).shards
        if cell.task == "retrieve" or (read_labels(dataset, split) >= 0).any():
            continue
        if cell.task == "classify":
            raise UserError(
                f"{dataset.root}: split '{split}' has no labels, and the methods of this table "
                "learn classes and are judged by them: add `.cls` members, or take a table of "
                "retrieval (ova-ib-table3)"
            )
        suffixes = scan_shard(dataset.shard(shards[0])).suffixes(0)
        if not any(s.split(".")[0] == "target" for s in suffixes):
            raise UserError(
                f"{dataset.root}: split '{split}' has neither labels nor targets, so a probe has "
                "nothing to learn: add `.cls` or `.target.npy` members, or take a table of "
                "retrieval (ova-ib-table3)"
            )


def _listed(plan: Plan, measure: Measure) -> Outcome:
    """The plan, for people and as JSON."""
    lines, data = [], []
    parts = [
        {"folder": str(p.folder), "what": p.what, "state": "done" if p.done() else "to do"}
        for p in plan.needs
    ]
    lines += [f"first  {p['what']}  {p['state']}  {p['folder']}" for p in parts]
    row, column = (max(map(len, names)) for names in _names(plan))
    for cell in plan.cells:
        state = _state(cell, measure)
        place = f"{cell.row:<{row}}  {cell.column.name:<{column}}"
        lines.append(f"{cell.number:>4}  {place}  seed {cell.seed}  {state}")
        data.append(
            {
                "cell": cell.number,
                "row": cell.row,
                "modalities": list(cell.modalities),
                "learned": cell.column.learned,
                "seed": cell.seed,
                "run": str(cell.folder),
                "state": state,
            }
        )
    config = plan.cells[0].config
    budget = (
        f"every cell: {config.engine.epochs} epochs, batch {config.data.batch}, "
        f"{config.optim.name} {config.optim.lr:g}"
    )
    array = f"as a job array: outmodal submit reproduce ... --array 0-{len(plan.cells) - 1}"
    return Outcome({"preparations": parts, "cells": data}, "\n".join([*lines, budget, array]))


def _names(plan: Plan) -> tuple[list[str], list[str]]:
    """Names of the cells' rows and of their columns."""
    return [cell.row for cell in plan.cells], [cell.column.name for cell in plan.cells]


def _state(cell: Cell, measure: Measure) -> str:
    if finished(cell, measure) is not None:
        return "done"
    if (cell.folder / "result.json").is_file():
        return "trained"
    return "begun" if (cell.folder / "config.yaml").is_file() else "to do"


def _one(cells: Sequence[Cell], measure: Measure, number: int) -> Outcome:
    if not 0 <= number < len(cells):
        raise UserError(f"--cell {number}: this plan has the cells 0 to {len(cells) - 1}")
    from outmodal.launch.reproduce.driver import stopping

    cell = cells[number]
    with stopping():
        metrics = measured(cell, measure)
    text = "\n".join(f"{name:<40} {value:.4f}" for name, value in metrics.items())
    return Outcome({"cell": number, "run": str(cell.folder), "metrics": metrics}, text)


def _all(
    args: ReproduceArgs,
    table: TableSpec,
    plan: Plan,
    measure: Measure,
    request: Request,
    *,
    only_show: bool,
) -> Outcome:
    outcomes = {} if only_show else _filled(args, plan, measure)
    failed = [o for o in outcomes.values() if o.problem]
    found = {n: o.metrics for n, o in outcomes.items() if not o.problem}
    if only_show:
        done = {cell.number: finished(cell, measure) for cell in plan.cells}
        found = {number: metrics for number, metrics in done.items() if metrics is not None}
    text, data = _written(args.table, table, plan, found, request)
    problems = [f"cell {o.cell.number} ({o.cell.folder}): {o.problem}" for o in failed]
    data |= {"problems": problems, "done": len(found), "of": len(plan.cells)}
    tail = [f"{len(found)} of {len(plan.cells)} cells are done"] if only_show else []
    return Outcome(data, "\n".join([text, *tail, *problems]), 2 if failed else 0)


def _filled(args: ReproduceArgs, plan: Plan, measure: Measure) -> dict[int, CellOutcome]:
    """Work on the cells under a bar."""
    from outmodal.launch.reproduce.driver import run_cells

    with progress_bar(len(plan.cells), args.table, "cell") as bar:

        def report(outcome: CellOutcome | None, done: int, total: int) -> None:
            bar.update(done - bar.n)
            if outcome is not None and outcome.problem:
                bar.write(f"cell {outcome.cell.number}: {outcome.problem}", file=sys.stderr)

        return run_cells(plan.cells, measure, args.nproc_jobs, report)


def _written(
    name: str,
    table: TableSpec,
    plan: Plan,
    found: Mapping[int, Mapping[str, float]],
    request: Request,
) -> tuple[str, dict[str, Any]]:
    """Write OUT/NAME.md, .csv and .json; return the Markdown and the JSON."""
    from outmodal.launch.reproduce.render import as_csv, as_json, blocks, markdown

    text = markdown(table, plan, blocks(table, plan, found))
    data = {"table": name, **as_json(table, plan, found)}
    paths = {kind: str((request.out / f"{name}.{kind}").absolute()) for kind in _KINDS}
    data |= {"files": paths}
    contents = {"md": text, "csv": as_csv(plan, found), "json": json.dumps(data, indent=2) + "\n"}
    request.out.mkdir(parents=True, exist_ok=True)
    for kind, content in contents.items():
        write_atomic(Path(paths[kind]), content.encode())
    return f"{text}\nwrote {', '.join(paths.values())}", data


_KINDS = ("md", "csv", "json")
_SWITCHES = {"--plan": "plan", "--dry_run": "plan", "--dry-run": "plan", "--show": "show"}
