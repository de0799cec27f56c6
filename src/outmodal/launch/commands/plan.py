"""`outmodal plan RECIPE`: memory, wires, time and storage of a run, before a job is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome
from outmodal.launch.commands.train import take_option

if TYPE_CHECKING:
    from outmodal.launch.config import RunConfig
    from outmodal.launch.plan.estimate import Assumptions, Planner
    from outmodal.launch.plan.hardware import Machine

_EXAMPLE = "outmodal plan erm --nodes 4 --gpus_per_node 8 --gpu h100 --data.batch 4096"


@dataclass(frozen=True)
class PlanArgs:
    """What a recipe needs on machines that are not at hand: memory of each GPU for every
    strategy, bytes on the wire, step time by roofline, hours, loader cores, storage bandwidth,
    and the interval between checkpoints that loses least. Takes every key of the recipe too."""

    nodes: int = 1
    """Nodes of the job."""
    gpus_per_node: int = 1
    """GPUs of each node."""
    gpu: str = "h100"
    """v100, rtx4090, l40s, a100-40, a100, h100, h200, b200, mi300x or cpu."""
    interconnect: str = "ndr"
    """Between nodes, for each GPU: ndr, hdr, edr, ethernet-100, ethernet-25 or ethernet-10."""
    samples: int = 0
    """Training samples of a data set that is not at hand; 0 opens data.path."""
    classes: int = 0
    """Its classes."""
    sample_kb: float = 100.0
    """Mean size of its samples in their shards."""
    vectors: tuple[str, ...] = ()
    """Its feature vectors, as image=1024."""
    reach: float = 0.55
    """Share of the data sheet's arithmetic that kernels reach."""
    failure_hours: float = 50_000.0
    """GPU hours for each failure of a job."""
    write_gbps: float = 1.0
    """Gigabytes a second that the run's folder takes."""
    core_rate: float = 0.0
    """Samples a second that one core decodes; 0 times the data set, or assumes by kind."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = list(argv)
    if not args or args[0] in ("-h", "--help"):
        parse(PlanArgs, ["--help"], prog="outmodal plan RECIPE", example=_EXAMPLE)
    if args[0].startswith("--"):
        raise UserError(f"the recipe comes first: {_EXAMPLE}")
    own, rest = _own(args[1:])
    parsed = parse(PlanArgs, own, prog=f"outmodal plan {args[0]}", example=_EXAMPLE)
    machine = _machine(parsed)

    from outmodal.launch.config import load_config
    from outmodal.launch.plan.text import as_data, as_text

    planner = _planner(load_config(args[0], rest), parsed)
    found = planner.estimate(machine, _assumptions(planner, parsed))
    return Outcome(as_data(found), as_text(found))


def _own(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """This command's options, and the recipe's keys."""
    rest = list(args)
    own: list[str] = []
    for field in fields(PlanArgs):
        if field.name == "vectors":
            continue
        for name in {f"--{field.name}", f"--{field.name.replace('_', '-')}"}:
            value, rest = take_option(rest, name)
            own += [f"--{field.name}", value] if value is not None else []
    if "--vectors" in rest:
        start = rest.index("--vectors")
        stop = next((i for i in range(start + 1, len(rest)) if rest[i].startswith("--")), len(rest))
        own += rest[start:stop]
        rest = rest[:start] + rest[stop:]
    return own, rest


def _machine(args: PlanArgs) -> Machine:
    from outmodal.launch.plan.hardware import Machine, find_gpu, find_link

    for name in ("nodes", "gpus_per_node"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    for name in ("reach", "failure_hours", "write_gbps", "sample_kb"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name} must be above 0, got {getattr(args, name)}")
    gpu = find_gpu(args.gpu)
    reserve = 0.0 if gpu.name == "cpu" else 2e9
    return Machine(
        gpu, args.nodes, args.gpus_per_node, find_link(args.interconnect), args.reach, reserve
    )


def _planner(config: RunConfig, args: PlanArgs) -> Planner:
    from outmodal.launch.config import set_keys
    from outmodal.launch.plan.estimate import Planner
    from outmodal.launch.plan.subject import Described, Subject

    described = None
    if args.samples:
        described = Described(
            args.samples, args.classes, args.sample_kb * 1000, _vectors(args.vectors)
        )
    subject = Subject(config, described)
    if config.engine.activation_checkpointing:
        return Planner(subject, subject)
    if not all(f.recomputable for f in subject.method.context.learners.values()):
        return Planner(subject, None)
    again = set_keys(config, {"engine.activation_checkpointing": True})
    return Planner(subject, Subject(again, described))


def _vectors(texts: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, size = text.partition("=")
        if not size.isdigit() or int(size) < 1:
            raise UserError(f"--vectors {text}: expected MODALITY=SIZE, as in image=1024")
        found[name] = int(size)
    return found


def _assumptions(planner: Planner, args: PlanArgs) -> Assumptions:
    from outmodal.launch.plan.estimate import Assumptions

    rate, measured = args.core_rate, False
    if not rate:
        rate, measured = planner.subject.core_rate()
    return Assumptions(args.failure_hours, args.write_gbps * 1e9, rate, measured)
