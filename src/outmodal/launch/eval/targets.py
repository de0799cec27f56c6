"""What `outmodal eval` evaluates: a run, exports, or perceptors, opened on a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outmodal.errors import UserError
from outmodal.launch.eval.arguments import OF_A_RUN, OF_PERCEPTORS, EvalArgs
from outmodal.train.representations import Encoder

CELLS = "cells"
"""Stands for the split where all cells of ready made corruptions are evaluated."""


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Attributes:
        encoder: Its encoders, on the data set.
        run: The run's folder, None for exports and perceptors.
        data: The data set.
        train, split: What is learnt from, and what is evaluated.
        other: Whether the data set is not the run's own.
    """

    encoder: Encoder
    run: Path | None
    data: str
    train: str
    split: str
    other: bool = False


@contextmanager
def open_target(args: EvalArgs) -> Iterator[Target]:
    """Open what the arguments name; UserError where they do not fit together."""
    _check(args)
    if args.perceptor:
        yield from _perceptors(args)
    elif is_export(args.what[0]):
        yield from _exports(args)
    else:
        yield from _run(args)


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export."""
    return (folder / "outmodal.json").is_file()


def _check(args: EvalArgs) -> None:
    named = " ".join(map(str, args.what))
    if args.perceptor and args.what:
        raise UserError(f"name either {named} or --perceptor, not both")
    if not args.perceptor and not args.what:
        raise UserError(f"name a run, an export, or --perceptor ({OF_A_RUN})")
    if args.template and not args.perceptor:
        raise UserError(f"--template is for perceptors: leave it out ({OF_A_RUN})")
    if args.template and args.task not in ("classify", "corruptions"):
        raise UserError("--template is for --task classify: leave it out")
    exports = [is_export(folder) for folder in args.what]
    if len(exports) > 1 and not all(exports):
        raise UserError(f"{args.what[exports.index(False)]} is no export: several are exports only")
    if (args.perceptor or any(exports)) and not args.data:
        example = OF_PERCEPTORS if args.perceptor else OF_A_RUN
        raise UserError(f"--data is missing: only a run knows its data ({example})")


def _run(args: EvalArgs) -> Iterator[Target]:
    from outmodal.data.opening import shown_data
    from outmodal.launch.running import open_run
    from outmodal.train.evaluation import require_classes
    from outmodal.train.representations import opened
    from outmodal.train.sources import is_other, open_run_source

    plan = open_run(args.what[0])[1]
    if args.task == "classify":
        require_classes(plan, args.data)
    other = is_other(plan, args.data)
    split = args.split or (_split_of(args, plan.data.eval_split) if other else "")
    source, config = open_run_source(plan, args.data, "" if split == CELLS else split)
    with opened(source, config) as encoder:
        yield Target(
            encoder,
            plan.out,
            shown_data(config),
            args.train_split or config.train_split,
            split or config.eval_split,
            other,
        )


def _split_of(args: EvalArgs, usual: str) -> str:
    """The split of another data set that is evaluated where none is named: the usual one, or the
    only one that there is; `CELLS` for corruptions of a data set that holds them ready made."""
    from outmodal.data.corruptions.imagenet_c import cells
    from outmodal.data.manifest import open_dataset

    splits = open_dataset(args.data, verify=False).manifest.splits
    if args.task == "corruptions" and cells(splits) and usual not in splits:
        return CELLS
    return next(iter(splits)) if len(splits) == 1 else usual


def _exports(args: EvalArgs) -> Iterator[Target]:
    from outmodal.data.stream import StreamConfig
    from outmodal.train.representations import opened
    from outmodal.train.sources import open_exports

    source = open_exports(args.what, args.data)
    config = StreamConfig(path=args.data, batch=args.batch, workers=args.workers)
    with opened(source, config) as encoder:
        yield _plain(encoder, args)


def _perceptors(args: EvalArgs) -> Iterator[Target]:
    from outmodal.data.manifest import open_dataset
    from outmodal.data.stream import StreamConfig
    from outmodal.launch.commands.embed import perceptor_config
    from outmodal.train.perceptor_evaluation import open_perceptors, open_zero_shot
    from outmodal.train.representations import opened

    changes = {"precision": args.precision, "compile": args.compile}
    configs = [perceptor_config(text).model_copy(update=changes) for text in args.perceptor]
    dataset = open_dataset(args.data)
    zero_shot = args.task == "classify" or (args.task == "corruptions" and args.judge != "probe")
    source = (
        open_zero_shot(dataset, configs, args.template)
        if zero_shot
        else open_perceptors(dataset, configs)
    )
    config = StreamConfig(path=args.data, batch=args.batch, workers=args.workers, cache_mb=0)
    with opened(source, config) as encoder:
        yield _plain(encoder, args)


def _plain(encoder: Encoder, args: EvalArgs) -> Target:
    train, split = args.train_split or "train", args.split or _split_of(args, "test")
    return Target(encoder, None, args.data, train, split)
