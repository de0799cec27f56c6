"""`outmodal data check DIR`: verify a data set, and with --repair write it again without faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outmodal.errors import UserError
from outmodal.launch.arguments import parse_positional, progress_bar
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.data.check import CheckReport
    from outmodal.data.manifest import Dataset

_SHOWN = 20
"""Problems of a shard that the text names; --json has all."""
_LINES = 40
"""Shards up to which the table has those without problems too."""


@dataclass(frozen=True)
class CheckArgs:
    """Verify sizes, checksums, counts, index files and labels, and decode every member.

    With --repair a new data set is written beside the old one, without what is broken: whole
    shards are linked, broken ones written again, and OUT/repair.json lists what was left out. The
    original stays as it is. A repair that was stopped goes on when it is repeated.
    """

    dataset: tuple[str, ...]
    """Folder or address of the data set; several are checked one after the other."""
    workers: int = 0
    """Processes; 0 works in this one."""
    repair: bool = False
    """Write the data set again without what is broken."""
    out: str = ""
    """Folder of the repaired data set; DATASET-repaired where empty."""


def run(argv: list[str]) -> Outcome:
    """Entry point of the command."""
    from outmodal.data.manifest import open_dataset

    if "--repair" in argv and argv[argv.index("--repair") + 1 :][:1] not in (["True"], ["False"]):
        argv = [*argv, "--repair", "True"]
        argv.remove("--repair")
    args = parse_positional(
        CheckArgs, argv, "dataset", prog="outmodal data check", sample="DATASET --workers 2"
    )
    if not args.dataset:
        raise UserError("name the data set to check (outmodal data check DATASET)")
    if args.out and not args.repair:
        raise UserError("--out names the repaired data set: give --repair too")
    datasets = [open_dataset(path, verify=False) for path in args.dataset]
    if args.repair:
        if len(datasets) > 1:
            raise UserError("--repair takes one data set at a time")
        return _repair(datasets[0], args.out, args.workers)
    outcomes = [_check(dataset, args.workers) for dataset in datasets]
    if len(outcomes) == 1:
        return outcomes[0]
    data = {path: outcome.data for path, outcome in zip(args.dataset, outcomes, strict=True)}
    text = "\n\n".join(
        f"{path}: {outcome.text}" for path, outcome in zip(args.dataset, outcomes, strict=True)
    )
    return Outcome(data, text, max(outcome.exit_code for outcome in outcomes))


def _check(dataset: Dataset, workers: int) -> Outcome:
    from outmodal.data.check import check_dataset

    with _Bar(_samples(dataset), "check", "sample") as bar:
        report = check_dataset(dataset, workers, bar.advance)
    return Outcome(report.as_json(), report_text(report), 0 if report.ok else 2)


def _samples(dataset: Dataset) -> int:
    return sum(split.samples for split in dataset.manifest.splits.values())


def _repair(dataset: Dataset, out: str, workers: int) -> Outcome:
    from outmodal.data.repair import REPORT, repair_dataset

    if not out and dataset.store.folder is None:
        raise UserError(f"{dataset.where} lies on another machine: name a folder here with --out")
    folder = Path(out) if out else dataset.root.with_name(f"{dataset.root.resolve().name}-repaired")
    shards = sum(len(split.shards) for split in dataset.manifest.splits.values())
    with _Bar(shards, "repair", "shard") as bar:
        repair = repair_dataset(dataset, folder, workers, bar.advance)
    lost = len({(item.shard, item.key) for item in repair.left_out if item.key and not item.member})
    text = (
        f"wrote {folder}: {repair.samples} samples, {repair.rewritten} shards written again, "
        f"{lost} samples left out by name; {folder / REPORT} lists them"
    )
    data = {
        "dataset": str(folder.absolute()),
        "samples": repair.samples,
        "rewritten": repair.rewritten,
        "left_out": len(repair.left_out),
        "report": str((folder / REPORT).absolute()),
        "check": repair.report.as_json(),
    }
    return Outcome(data, f"{report_text(repair.report)}\n\n{text}")


class _Bar:
    """A progress bar that takes (done, total)."""

    def __init__(self, total: int, what: str, unit: str) -> None:
        self._bar: Any = progress_bar(total, what, unit)

    def __enter__(self) -> _Bar:
        return self

    def advance(self, done: int, _total: int) -> None:
        """Go to `done`."""
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def report_text(report: CheckReport) -> str:
    """The report for people: a line, a table of shards, problems by kind, and the problems."""
    head = f"{report.samples} samples in {len(report.shards)} shards: "
    if report.ok:
        head += "all good"
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
        head += f"{len(report.problems)} problems ({kinds})"
    return "\n".join([head, *_table(report), *_problems(report)])


def _table(report: CheckReport) -> list[str]:
    few = len(report.shards) <= _LINES
    shown = [shard for shard in report.shards if few or shard.problems]
    if not shown:
        return []
    width = max(5, *(len(shard.file) for shard in shown))
    lines = [f"  {'shard':<{width}}  {'split':<8} {'samples':>9} {'MB':>10} {'problems':>9}"]
    lines += [
        f"  {shard.file:<{width}}  {shard.split:<8} {shard.samples:>9} {shard.bytes / 1e6:>10.2f} "
        f"{shard.problems:>9}"
        for shard in shown
    ]
    rest = len(report.shards) - len(shown)
    return lines + ([f"  and {rest} shards without problems"] if rest else [])


def _problems(report: CheckReport) -> list[str]:
    lines, seen = [], Counter[str]()
    for problem in report.problems:
        seen[problem.shard] += 1
        if seen[problem.shard] <= _SHOWN:
            lines.append(str(problem))
    more = {shard: count - _SHOWN for shard, count in seen.items() if count > _SHOWN}
    return lines + [f"{shard}: and {count} more (--json has all)" for shard, count in more.items()]
