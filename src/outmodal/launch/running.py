"""From a configuration to a run and back: plans for the engine, runs reopened from disk."""

from __future__ import annotations

from pathlib import Path

from outmodal.errors import UserError
from outmodal.launch.config import RunConfig, dump_config, parse_config
from outmodal.train.run import RunPlan


def run_plan(config: RunConfig, out: Path) -> RunPlan:
    """What the engine needs of a configuration."""
    return RunPlan(
        out=out,
        seed=config.seed,
        data=config.data,
        learners=config.learners,
        perceptors=config.perceptors,
        method=config.method,
        optim=config.optim,
        engine=config.engine,
        config_text=dump_config(config),
    )


def open_run(folder: str | Path) -> tuple[RunConfig, RunPlan]:
    """The configuration and plan of a run on disk.

    Raises:
        UserError: The folder is no run, or its config.yaml cannot be read.
    """
    root = Path(folder).absolute()
    path = root / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{root} is not a run: it has no config.yaml; give a folder that `outmodal train` wrote"
        )
    config = parse_config(path.read_text(encoding="utf-8"), str(path))
    return config, run_plan(config, root)
