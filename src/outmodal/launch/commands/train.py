"""`outmodal train RECIPE`: one process, or `--nproc N`, or whatever started us."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outmodal.errors import UserError
from outmodal.launch.cli import Outcome

USAGE = """usage: outmodal train RECIPE [--nproc N] [--dry_run] [--section.key value ...] [--json]

Trains a shipped recipe or a YAML file. Repeat the command to resume; it continues from the
newest complete checkpoint of the run's folder (--out). Under torchrun or srun it joins the
processes that were started; --nproc N starts N local ones.

shipped recipes: {recipes}

examples:
  outmodal train erm --out runs/erm --engine.epochs 5
  outmodal train cox --nproc 2 --engine.strategy zero2 --data.path DATASET
  outmodal train cox --help          every key of that recipe
  outmodal train erm --method.path my_method.py      a method of your own (docs/extending.md)
"""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    from outmodal.launch import config as configuration

    args = list(argv)
    if not args or args[0] in ("-h", "--help"):
        return Outcome({}, USAGE.format(recipes=", ".join(configuration.recipe_names())))
    if args[0].startswith("--"):
        raise UserError(f"the recipe comes first: outmodal train RECIPE {args[0]} ...")
    recipe, rest = args[0], args[1:]
    nproc, rest = take_option(rest, "--nproc")
    dry_run, rest = _take_flag(rest, "--dry_run", "--dry-run")
    config = configuration.load_config(recipe, rest)
    text = configuration.dump_config(config)
    if dry_run:
        return Outcome(config.model_dump(mode="json"), text)
    if nproc is not None and "RANK" not in os.environ:
        return _several(recipe, rest, _count(nproc))
    return train_here(config, configuration.resolved_out(config, recipe))


def train_here(config: object, out: Path) -> Outcome:
    """Train in this process (one rank of however many) and report."""
    from outmodal.launch.config import RunConfig
    from outmodal.launch.running import run_plan
    from outmodal.train.run import train

    assert isinstance(config, RunConfig)
    result = train(run_plan(config, out))
    data = {"run": str(result.out), "steps": result.steps, "metrics": result.metrics}
    return Outcome(data, _shown(data))


def _shown(data: Mapping[str, Any]) -> str:
    lines = [f"{name:<28} {value:.4f}" for name, value in sorted(data["metrics"].items())]
    return "\n".join([*lines, f"run: {data['run']}"])


def _several(recipe: str, rest: list[str], count: int) -> Outcome:
    from outmodal.launch.local import run_local

    code, answer = run_local(["train", recipe, *rest, "--json"], count)
    data = json.loads(answer) if answer.strip() else {"exit_code": code}
    return Outcome(data, _shown(data) if code == 0 else "", code)


def take_option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """Remove `name VALUE` or `name=VALUE` from the arguments."""
    for i, arg in enumerate(args):
        if arg == name:
            if i + 1 == len(args):
                raise UserError(f"{name} wants a value")
            return args[i + 1], args[:i] + args[i + 2 :]
        if arg.startswith(name + "="):
            return arg.split("=", 1)[1], args[:i] + args[i + 1 :]
    return None, args


def _take_flag(args: list[str], *names: str) -> tuple[bool, list[str]]:
    return any(a in names for a in args), [a for a in args if a not in names]


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--nproc {text}: give the number of processes, 1 or more")
    return int(text)
