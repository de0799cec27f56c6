"""`outmodal submit RECIPE`: a training, or the cells of a table, as a job of a SLURM cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from outmodal.errors import UserError
from outmodal.launch.arguments import parse, refuse_unknown
from outmodal.launch.cli import Outcome

EXAMPLE = (
    "outmodal submit cox --nodes 2 --gpus_per_node 8 --partition gpu --time 12:00:00 --out RUN "
    "--data.path DATASET"
)


@dataclass(frozen=True)
class SubmitArgs:
    """Run a training as a job of a SLURM cluster: `outmodal submit RECIPE [options] --out RUN
    [--section.key value ...]`, with every key of the recipe as for `outmodal train`; or the cells
    of a table as a job array: `outmodal submit reproduce TABLE --array 0-11 --out FOLDER ...`.

    The script, the resolved configuration and the logs are kept in RUN/slurm. One task a rank; a
    job that is preempted or runs out of time queues itself again and goes on."""

    nodes: int = 1
    """Nodes."""
    gpus_per_node: int | None = None
    """GPUs on each; 0 for a job on CPUs. Left out: the profile's."""
    tasks_per_node: int = 0
    """Ranks on each node; 0 is one a GPU, or one on CPUs."""
    cpus_per_task: int | None = None
    """Cores of a rank. Left out: the profile's; then one and one for each loader worker."""
    partition: str = ""
    """Partition; left out: the profile's, else the cluster's default. So are the next three."""
    account: str = ""
    """Account."""
    qos: str = ""
    """Quality of service."""
    time: str = ""
    """Time limit, 12:00:00 for instance; the job queues itself again when it is not done."""
    array: str = ""
    """Cells of a table as a job array, 0-11%4 for instance."""
    name: str = ""
    """The job's name; left out: the recipe's."""
    profile: Path | None = None
    """The site's profile; left out: $OUTMODAL_SLURM_PROFILE or ~/.config/outmodal/slurm.yaml."""
    dry_run: bool = False
    """Print the script, submit nothing."""
    follow: bool = False
    """Wait for the job and show its log."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = list(argv)
    if not args or args[0] in ("-h", "--help"):
        parse(SubmitArgs, ["--help"], prog="outmodal submit RECIPE", example=EXAMPLE)
    if args[0].startswith("--"):
        raise UserError(f"the recipe comes first: outmodal submit RECIPE {args[0]} ...")
    what, own, rest = _split(args)
    options = parse(SubmitArgs, own, prog=f"outmodal submit {what}", example=EXAMPLE)
    from outmodal.launch.slurm import submitting

    if what == "reproduce":
        return submitting.submit_table(options, rest)
    return submitting.submit_training(what, options, rest)


def _split(args: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """The recipe, this command's own options, and the rest."""
    names = {f.name for f in fields(SubmitArgs)}
    flags = {f.name for f in fields(SubmitArgs) if f.type == "bool"}
    own: list[str] = []
    rest: list[str] = []
    queue = list(args[1:])
    while queue:
        arg = queue.pop(0)
        name = arg[2:].split("=", 1)[0].replace("-", "_") if arg.startswith("--") else ""
        if name not in names:
            rest.append(arg)
        elif "=" in arg:
            own.append(f"--{name}={arg.split('=', 1)[1]}")
        elif name in flags:
            given = queue.pop(0) if queue and queue[0] in ("True", "False") else "True"
            own += [f"--{name}", given]
        elif not queue:
            raise UserError(f"--{name} wants a value")
        else:
            own += [f"--{name}", queue.pop(0)]
    if args[0] != "reproduce":
        _refuse_misspelt(rest, names)
    return args[0], own, rest


def _refuse_misspelt(rest: Sequence[str], names: set[str]) -> None:
    """Keys without a section are this command's, `out` or `seed`."""
    known: dict[str, Any] = dict.fromkeys([*names, "out", "seed"])
    refuse_unknown([a for a in rest if "." not in a.split("=", 1)[0]], known)
