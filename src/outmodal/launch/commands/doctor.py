"""`outmodal doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.launch.doctor.line import Line

_EXAMPLE = "outmodal doctor --data DATASET --nproc 2"


@dataclass(frozen=True)
class DoctorArgs:
    """Check this machine, or all ranks of an allocation (under srun or torchrun, or --nproc):
    versions, GPUs, bandwidth between ranks, SLURM, shared memory, open files, disk, data, clock."""

    out: Path = Path("runs")
    """Where runs will be written: its disk is checked."""
    data: tuple[str, ...] = ("fashion-speech-sample",)
    """Data sets to open and to read samples of."""
    recipe: str = ""
    """A recipe whose data, a mixture perhaps, are looked at as well, with what an epoch uses."""
    nproc: int = 1
    """Local processes to measure between."""
    draft_profile: Path | None = None
    """Write a first SLURM profile for `outmodal submit` from what the cluster says."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = parse(DoctorArgs, argv, prog="outmodal doctor", example=_EXAMPLE)
    if args.nproc < 1:
        raise UserError(f"--nproc {args.nproc}: give the number of processes, 1 or more")
    if args.nproc > 1 and "RANK" not in os.environ:
        return _several(argv, args.nproc)
    return _report(_lines(args))


def _lines(args: DoctorArgs) -> list[Line]:
    from outmodal.launch.doctor.cluster import slurm_lines
    from outmodal.launch.doctor.machine import machine_lines
    from outmodal.launch.doctor.ranks import rank_lines, together
    from outmodal.launch.doctor.storage import data_lines, disk_line, recipe_lines
    from outmodal.train import gather

    gather.open_world(timeout_minutes=2.0)
    own = [*machine_lines(), *slurm_lines(), disk_line(args.out)]
    for path in args.data:
        own += data_lines(path)
    if args.recipe:
        own += recipe_lines(args.recipe)
    if args.draft_profile is not None and gather.is_main():
        own.append(_drafted(args.draft_profile))
    return [*together(own), *rank_lines()]


def _drafted(path: Path) -> Line:
    from outmodal.launch.doctor.line import Line
    from outmodal.launch.slurm.draft import write_draft_profile

    try:
        write_draft_profile(path)
    except UserError as error:
        return Line("SLURM profile", "failure", str(path), str(error))
    return Line("SLURM profile", "ok", f"a first draft is in {path}: read it before you use it")


def _report(lines: Sequence[Line]) -> Outcome:
    failed = any(line.status == "failure" for line in lines)
    data = {"ok": not failed, "checks": [asdict(line) for line in lines]}
    return Outcome(data, "\n".join(line.shown() for line in lines), 2 if failed else 0)


def _several(argv: Sequence[str], count: int) -> Outcome:
    from outmodal.launch.doctor.line import Line
    from outmodal.launch.local import run_local

    code, answer = run_local(["doctor", *argv, "--json"], count)
    data = json.loads(answer) if answer.strip() else {}
    if "checks" not in data:
        return Outcome(data or {"exit_code": code}, "", code or 1)
    return _report([Line(**check) for check in data["checks"]])
