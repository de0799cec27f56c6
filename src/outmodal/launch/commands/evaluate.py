"""`outmodal eval`: a run, exports, or perceptors, by one of the tasks of `launch.eval.tasks`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome
from outmodal.launch.eval.arguments import OF_A_RUN, OF_ENCODERS, OF_PERCEPTORS, EvalArgs

_MINUTES = 60.0
"""Longest that a process waits for another one."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = list(argv)
    if args and not args[0].startswith("-"):
        args = ["--what", *args]
    example = "\n         ".join([OF_A_RUN, OF_ENCODERS, OF_PERCEPTORS])
    parsed = parse(EvalArgs, args, prog="outmodal eval", example=example)
    if parsed.nproc < 1:
        raise UserError(f"--nproc {parsed.nproc}: give the number of processes, 1 or more")
    if parsed.draws < 0:
        raise UserError(f"--draws {parsed.draws}: give the number of resamples, 0 or more")
    if parsed.nproc > 1 and "RANK" not in os.environ:
        return _several(argv, parsed.nproc)
    with _alike():
        return _evaluate(parsed)


def _several(argv: Sequence[str], count: int) -> Outcome:
    from outmodal.launch.eval.output import as_text
    from outmodal.launch.local import run_local

    code, answer = run_local(["eval", *argv, "--json"], count)
    data = json.loads(answer) if answer.strip() else {"exit_code": code}
    return Outcome(data, as_text(data) if code == 0 else "", code)


def _evaluate(args: EvalArgs) -> Outcome:
    """Evaluate in this process, one of however many."""
    from outmodal.launch.eval import output
    from outmodal.launch.eval.targets import open_target
    from outmodal.launch.eval.tasks import evaluate
    from outmodal.train import gather
    from outmodal.train.together import on_main

    gather.open_world("auto", _MINUTES)
    on_main(lambda: output.check_csv(args.csv))
    with open_target(args) as target:
        found = evaluate(target, args)
        data = output.record(args.task, target, found)
        path = output.record_path(args.task, target)
    if gather.is_main():
        output.keep(path, data)
    if args.csv:
        on_main(lambda: output.write_csv(args.csv, data["rows"]))
    return Outcome(data, output.as_text(data) if gather.is_main() else "")


@contextmanager
def _alike() -> Iterator[None]:
    """One thread a process, as for `outmodal embed`: the last bits of a matrix product depend on
    the number of threads, and results must not depend on how many processes made them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    except UserError as error:  # every process finds the same mistake: one of each machine says it
        error.quiet = error.quiet or os.environ.get("LOCAL_RANK", "0") != "0"
        raise
    finally:
        torch.set_num_threads(before)
