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
from outmodal.launch.reproduce.cells import Cell, Request, parse_changes, plan_cells
from outmodal.launch.reproduce.table import TableSpec, chosen_rows, load_table, table_names
from outmodal.launch.reproduce.work import Measure, finished, measured
from outmodal.train.combinations import Missing, Which
from outmodal.train.probing import ProbeConfig

_EXAMPLE = """outmodal reproduce ova-ib-table1 --data six-view --seeds 3 --out tables --nproc_jobs 2
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
    cell: int | None = None
    """Work on this cell alone, by its number in --plan: for job arrays."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    columns, rest = _columns(list(argv))
    flags = [a for a in rest if a not in ("--plan", "--dry_run", "--dry-run")]
    planned = len(flags) < len(rest)
    if flags and not flags[0].startswith("-"):
        flags = ["--table", *flags]
    example = f"{_EXAMPLE}\n\ntables: {', '.join(table_names())}"
    args: ReproduceArgs = parse(ReproduceArgs, flags, prog="outmodal reproduce", example=example)
    table, dataset, request = _read(args, columns)
    cells = plan_cells(table, dataset, request)
    measure = Measure(
        task=table.task,
        split=args.split,
        probe=args.probe,
        subsets=args.subsets,
        missing=args.missing,
    )
    _check_answers(dataset, cells[0], measure)
    if planned or args.plan:
        return _listed(cells, measure)
    if args.cell is not None:
        return _one(cells, measure, args.cell)
    return _all(args, table, cells, measure, request)


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
        ("--steps", args.steps, 0),
    ):
        if value < least:
            raise UserError(f"{name} {value}: give {least} or more")
    changes = parse_changes(args.set)
    if args.epochs:
        changes["engine.epochs"] = args.epochs
    if args.steps:
        changes["engine.max_steps"] = args.steps
    request = Request(
        out=args.out or Path("tables"),
        rows=chosen_rows(table, args.objectives),
        columns=columns,
        seeds=args.seeds,
        recipe=args.recipe,
        changes=changes,
    )
    return table, open_dataset(args.data), request


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
    """Refuse a probe of data without labels before anything is trained."""
    from outmodal.data.labels import read_labels
    from outmodal.data.shards import scan_shard

    data = cell.config.data
    for split in (data.train_split, measure.split or data.eval_split):
        shards = dataset.split(split).shards
        if measure.task == "retrieve" or (read_labels(dataset, split) >= 0).any():
            continue
        suffixes = scan_shard(dataset.shard(shards[0])).suffixes(0)
        if not any(s.split(".")[0] == "target" for s in suffixes):
            raise UserError(
                f"{dataset.root}: split '{split}' has neither labels nor targets, so a probe has "
                "nothing to learn: add `.cls` or `.target.npy` members, or take a table of "
                "retrieval (ova-ib-table3)"
            )


def _listed(cells: Sequence[Cell], measure: Measure) -> Outcome:
    """The plan, for people and as JSON."""
    lines, data = [], []
    for cell in cells:
        state = _state(cell, measure)
        column = "+".join(cell.modalities)
        lines.append(f"{cell.number:>4}  {cell.row:<14} {column:<28} seed {cell.seed}  {state}")
        data.append(
            {
                "cell": cell.number,
                "row": cell.row,
                "modalities": list(cell.modalities),
                "seed": cell.seed,
                "run": str(cell.folder),
                "state": state,
            }
        )
    config = cells[0].config
    budget = (
        f"every cell: {config.engine.epochs} epochs, batch {config.data.batch}, "
        f"{config.optim.name} {config.optim.lr:g}"
    )
    return Outcome({"cells": data}, "\n".join([*lines, budget]))


def _state(cell: Cell, measure: Measure) -> str:
    if finished(cell, measure) is not None:
        return "done"
    if (cell.folder / "result.json").is_file():
        return "trained"
    return "begun" if (cell.folder / "config.yaml").is_file() else "to do"


def _one(cells: Sequence[Cell], measure: Measure, number: int) -> Outcome:
    if not 0 <= number < len(cells):
        raise UserError(f"--cell {number}: this plan has the cells 0 to {len(cells) - 1}")
    cell = cells[number]
    metrics = measured(cell, measure)
    text = "\n".join(f"{name:<40} {value:.4f}" for name, value in metrics.items())
    return Outcome({"cell": number, "run": str(cell.folder), "metrics": metrics}, text)


def _all(
    args: ReproduceArgs,
    table: TableSpec,
    cells: Sequence[Cell],
    measure: Measure,
    request: Request,
) -> Outcome:
    from outmodal.launch.reproduce.driver import run_cells
    from outmodal.launch.reproduce.work import Outcome as CellOutcome

    with progress_bar(len(cells), args.table, "cell") as bar:

        def report(outcome: CellOutcome | None, done: int, total: int) -> None:
            bar.update(done - bar.n)
            if outcome is not None and outcome.problem:
                bar.write(f"cell {outcome.cell.number}: {outcome.problem}", file=sys.stderr)

        outcomes = run_cells(cells, measure, args.nproc_jobs, report)
    failed = [o for o in outcomes.values() if o.problem]
    found = {n: o.metrics for n, o in outcomes.items() if not o.problem}
    text, data = _written(args.table, table, cells, found, request)
    problems = [f"cell {o.cell.number} ({o.cell.folder}): {o.problem}" for o in failed]
    data |= {"problems": problems}
    return Outcome(data, "\n".join([text, *problems]), 2 if failed else 0)


def _written(
    name: str,
    table: TableSpec,
    cells: Sequence[Cell],
    found: Mapping[int, Mapping[str, float]],
    request: Request,
) -> tuple[str, dict[str, Any]]:
    """Write OUT/NAME.md, .csv and .json; return the Markdown and the JSON."""
    from outmodal.launch.reproduce.render import as_csv, as_json, blocks, markdown

    text = markdown(table, request.rows, blocks(table, request.rows, cells, found))
    data = {"table": name, **as_json(table, cells, found)}
    paths = {kind: str((request.out / f"{name}.{kind}").absolute()) for kind in _KINDS}
    data |= {"files": paths}
    contents = {"md": text, "csv": as_csv(cells, found), "json": json.dumps(data, indent=2) + "\n"}
    request.out.mkdir(parents=True, exist_ok=True)
    for kind, content in contents.items():
        write_atomic(Path(paths[kind]), content.encode())
    return f"{text}\nwrote {', '.join(paths.values())}", data


_KINDS = ("md", "csv", "json")
