"""Options of `outmodal bench train`, and what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

EXAMPLE = "outmodal bench train --width 1024 --rounds 3"
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class TrainArgs:
    """What a training step costs beside its arithmetic: runs of `outmodal train` over one and
    several local processes, DDP and every ZeRO stage, and checkpoints written beside the training
    and in its way. Each run trains an MLP on random vectors.

    With --recipe instead: images a second of that recipe, of plain cross-entropy on the same model
    and of a bare PyTorch loop, in turns, on random inputs and, with --data, on shards. Takes every
    key of the recipe; --batch, --steps (of a turn), --rounds and --threads hold there as well."""

    what: tuple[str, ...] = ()
    """checkpoints, scaling; both where none is named."""
    recipe: str = ""
    """A recipe of supervised training or synergy to measure."""
    data: str = "synthetic"
    """With --recipe: random inputs, or a data set whose shards all loops read after those."""
    classes: int = 1000
    """With --recipe: classes of the random labels."""
    strategies: tuple[str, ...] = STRATEGIES
    """Strategies of several processes, the first is what the others are compared with."""
    processes: int = 2
    """Local processes of the scaling runs."""
    width: int = 1024
    """Of the MLP's three hidden layers: 1024 is 2.4 M parameters, 28 MB a checkpoint."""
    checkpoint_width: int = 2048
    """The same for the runs that measure checkpoints: 8.9 M parameters, 107 MB each."""
    batch: int = 256
    """Samples a step of one process."""
    steps: int = 16
    """Steps of a run that count; as many as half of them before, to warm up."""
    checkpoints: int = 4
    """Checkpoints of a run."""
    rounds: int = 1
    """Runs of each kind, in turns."""
    threads: int = 1
    """CPU threads of each process."""


def run_train(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    own, keys = _keys(argv)
    args = parse(TrainArgs, own, prog="outmodal bench train", example=EXAMPLE)
    _refuse(args)
    if args.recipe:
        return _steps(args, keys)
    if keys:
        raise UserError(f"{keys[0]} is a key of a recipe: name one with --recipe")
    from outmodal.launch.bench.train import Settings, bench_train, table

    result = bench_train(
        Settings(
            strategies=args.strategies,
            processes=args.processes,
            width=args.width,
            checkpoint_width=args.checkpoint_width,
            batch=args.batch,
            steps=args.steps,
            checkpoints=args.checkpoints,
            rounds=args.rounds,
            threads=args.threads,
        ),
        args.what or WHAT,
    )
    return Outcome(result, table(result))


def _keys(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """This command's options, and keys of the recipe, which have a point in their names."""
    own: list[str] = []
    keys: list[str] = []
    at = own
    for word in argv:
        if word.startswith("--"):
            at = keys if "." in word.partition("=")[0] else own
        at.append(word)
    return own, keys


def _steps(args: TrainArgs, keys: Sequence[str]) -> Outcome:
    if args.what:
        raise UserError("--what is of the runs without --recipe: leave one of them out")
    from outmodal.launch.bench.steps import StepSettings, bench_steps, steps_table

    result = bench_steps(
        StepSettings(
            recipe=args.recipe,
            keys=tuple(keys),
            data=args.data,
            batch=args.batch,
            classes=args.classes,
            steps=args.steps,
            rounds=args.rounds,
            threads=args.threads,
        )
    )
    return Outcome(result, steps_table(result))


WHAT = ("checkpoints", "scaling")


def _refuse(args: TrainArgs) -> None:
    """Refuse numbers and names that nothing can be measured with."""
    for given, known, kind in (
        (args.what, WHAT, "part"),
        (args.strategies, (*STRATEGIES, "zero0"), "strategy"),
    ):
        for name in given:
            if name not in known:
                raise UserError(f"unknown {kind} '{name}'{nearest(name, known)}")
    if not args.strategies:
        raise UserError("--strategies names none: leave it out, or name one or more")
    least = {
        "processes": 2,
        "classes": 2,
        "width": 1,
        "checkpoint_width": 1,
        "batch": 8,
        "steps": 2,
    }
    for option, number in {**least, "checkpoints": 1, "rounds": 1, "threads": 0}.items():
        if getattr(args, option) < number:
            raise UserError(f"--{option} must be at least {number}, got {getattr(args, option)}")
    if not args.recipe and args.batch % (8 * args.processes):
        raise UserError(
            f"--batch {args.batch} is not shared by 8 shards and {args.processes} processes: use "
            f"a multiple of {8 * args.processes}"
        )
