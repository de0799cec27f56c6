"""`outmodal report RUN [RUN ...]`: one HTML page about runs, that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

_EXAMPLE = "outmodal report runs/cox runs/erm --out compare.html"


@dataclass(frozen=True)
class ReportArgs:
    """Write one self-contained HTML page about runs: curves, differences of configurations, results
    with intervals, confusion, embedding maps, modality gap, agreement, data stream and hardware. A
    run may still be being written."""

    runs: tuple[Path, ...] = ()
    """Folders of runs."""
    out: Path | None = None
    """The file; report.html in the first run where it is not given."""
    samples: int = 10_000
    """Samples of the evaluation split to measure newest checkpoints on, at most; 0 is all."""
    evaluate: bool = True
    """False leaves checkpoints and data alone: curves and tables of what was logged."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    from outmodal.launch.report.build import write_report

    args = list(argv)
    if args and not args[0].startswith("-"):
        args = ["--runs", *args]
    parsed = parse(ReportArgs, args, prog="outmodal report", example=_EXAMPLE)
    if not parsed.runs:
        raise UserError(f"name a run ({_EXAMPLE})")
    if parsed.samples < 0:
        raise UserError(f"--samples {parsed.samples}: give a number, or 0 for all")
    report = write_report(parsed.runs, parsed.out, parsed.samples, parsed.evaluate)
    lines = [f"wrote {report.path} ({report.size / 1024:.0f} KiB)"]
    lines += [f"{name} is {state}" for name, state in report.runs.items() if state != "finished"]
    lines += [f"{name} was not evaluated: {why}" for name, why in report.missing.items()]
    data = {
        "report": str(report.path),
        "bytes": report.size,
        "runs": report.runs,
        "not_evaluated": report.missing,
    }
    return Outcome(data, "\n".join(lines))
