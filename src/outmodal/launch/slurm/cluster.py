"""What the cluster has, and whether a job can ever run on it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outmodal.errors import UserError, nearest
from outmodal.launch.slurm.script import Job

_TIMEOUT = 60.0
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_GPUS = re.compile(r"(?:^|,)gpu:(?:([^:,(]+):)?(\d+)")


@dataclass(frozen=True)
class Node:
    """A node as `sinfo` shows it; `gpus` counts those of every kind."""

    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Partition:
    """A partition, its limits (None where there are none) and its nodes."""

    name: str
    default: bool
    up: bool
    max_nodes: int | None
    max_seconds: int | None
    nodes: tuple[Node, ...]


class NoAnswer(UserError):
    """A command of SLURM is not installed, not set up, does not answer, or refuses."""


def ask(*command: str) -> str:
    """Run one of SLURM's commands and return what it says.

    Raises:
        NoAnswer: It says nothing; with its own words.
    """
    if shutil.which(command[0]) is None:
        raise NoAnswer(
            f"there is no {command[0]} on the path: submit from a login node of a SLURM cluster "
            "(--dry-run prints the script), or start here with `outmodal train --nproc N`"
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"{command[0]} did not answer within {_TIMEOUT:.0f} s: SLURM's controller seems to be "
            "down; try again later, `scontrol ping` shows its state"
        ) from None
    if done.returncode:
        remedy = "" if command[0] == "sbatch" else "; `scontrol ping` shows whether SLURM is up"
        raise NoAnswer(f"{command[0]} refused: {_said(done.stderr)}{remedy}")
    return done.stdout


def _said(stderr: str) -> str:
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in stderr.splitlines()]
    return "; ".join(line for line in lines if line) or "without a message"


def read_partitions() -> dict[str, Partition]:
    """The cluster's partitions by name.

    Raises:
        NoAnswer: As `ask`.
    """
    nodes: dict[str, list[Node]] = {}
    for line in ask("sinfo", "--noheader", "--Node", "--format=%R|%N|%c|%G").splitlines():
        partition, name, cpus, gres = line.strip().split("|")
        nodes.setdefault(partition, []).append(Node(name, int(cpus.rstrip("+")), gpus_of(gres)))
    found = {}
    for line in ask("scontrol", "--oneliner", "show", "partition").splitlines():
        fields = fields_of(line)
        if "PartitionName" in fields:
            name = fields["PartitionName"]
            found[name] = _partition(fields, nodes.get(name, []))
    return found


def fields_of(line: str) -> dict[str, str]:
    """`Key=value Key=value ...` of `scontrol --oneliner`."""
    pairs = (word.partition("=") for word in line.split())
    return {key: value for key, sign, value in pairs if sign}


def gpus_of(gres: str) -> int:
    """GPUs in a list of generic resources.

    >>> gpus_of("gpu:h100:8(S:0-1),nvme:1")
    8
    """
    return sum(int(count) for _, count in _GPUS.findall(gres))


def _partition(fields: Mapping[str, str], nodes: Sequence[Node]) -> Partition:
    most = fields.get("MaxNodes", "")
    return Partition(
        name=fields["PartitionName"],
        default=fields.get("Default") == "YES",
        up=fields.get("State", "UP") == "UP",
        max_nodes=int(most) if most.isdigit() else None,
        max_seconds=seconds(fields.get("MaxTime", "UNLIMITED")),
        nodes=tuple(nodes),
    )


def seconds(time: str) -> int | None:
    """Seconds of a time in one of SLURM's forms; None for no limit, or none that is known.

    >>> seconds("1-02:30:00"), seconds("90"), seconds("10:30"), seconds("UNLIMITED")
    (95400, 5400, 630, None)
    """
    found = _TIME.fullmatch(time)
    if not found:
        return None
    days, a, b, c = (None if part is None else int(part) for part in found.groups())
    if days is not None:
        return days * 86400 + (a or 0) * 3600 + (b or 0) * 60 + (c or 0)
    if b is None:
        return (a or 0) * 60
    if c is None:
        return (a or 0) * 60 + b
    return (a or 0) * 3600 + b * 60 + c


def check_request(job: Job, partitions: Mapping[str, Partition]) -> None:
    """Refuse what the cluster can never run.

    Raises:
        UserError: The partition does not exist (names the nearest) or is down; more nodes, time,
            GPUs or cores than it has.
    """
    part = _chosen(job, partitions)
    if not part.up:
        raise UserError(f"partition {part.name} is not up: choose another (--partition)")
    _check_nodes(job, part)
    wanted = seconds(job.time) if job.time else None
    if wanted and part.max_seconds is not None and wanted > part.max_seconds:
        raise UserError(
            f"--time {job.time} is more than partition {part.name} allows, "
            f"{part.max_seconds // 60} minutes: ask for less; the job queues itself again"
        )


def _chosen(job: Job, partitions: Mapping[str, Partition]) -> Partition:
    if job.partition:
        # a list of partitions is SLURM's to choose from; the first stands for all
        name = job.partition.split(",")[0]
        if name not in partitions:
            raise UserError(f"there is no partition '{name}'{nearest(name, partitions)}")
        return partitions[name]
    for part in partitions.values():
        if part.default:
            return part
    raise UserError(
        f"the cluster has no default partition: name one with --partition, of "
        f"{', '.join(sorted(partitions))}"
    )


def _check_nodes(job: Job, part: Partition) -> None:
    limit = min(len(part.nodes), part.max_nodes or len(part.nodes))
    if job.nodes > limit:
        raise UserError(
            f"--nodes {job.nodes}, but a job in partition {part.name} can have {limit} at most"
        )
    cores = job.tasks_per_node * max(1, job.cpus_per_task)
    for what, option, want, have in (
        ("GPUs", "--gpus_per_node", job.gpus_per_node, [n.gpus for n in part.nodes]),
        ("cores", "--tasks_per_node x --cpus_per_task", cores, [n.cpus for n in part.nodes]),
    ):
        fit = sum(count >= want for count in have)
        if fit < job.nodes:
            raise UserError(
                f"{option} is {want} on {job.nodes} nodes, but partition {part.name} has {fit} "
                f"nodes with that many {what} (its largest has {max(have, default=0)}): ask for "
                "less, or choose another partition"
            )
