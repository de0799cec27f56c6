"""Trains a method in the real engine on a tiny data set; a job of the fork server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from outmodal.data.arrays import SeriesInput, VectorInput
from outmodal.data.stream import StreamConfig
from outmodal.models.learners import MlpLearner
from outmodal.train.engine import EngineConfig
from outmodal.train.methods import AnyMethodConfig, MethodConfig
from outmodal.train.optim import OptimConfig
from outmodal.train.run import RunPlan, train

ENGINE = {"device": "cpu", "threads": 1, "log_every": 1, "timeout": 5.0, "eval_every": 2}
FORCE = MlpLearner(modality="force", widths=(12,), input=SeriesInput(length=16, channels=3))
POSE = MlpLearner(modality="pose", widths=(12,), input=VectorInput(dim=7))


def plan(job: Mapping[str, Any]) -> RunPlan:
    """The plan of a job {"out", "data", "method": {...}, "engine": {...}}."""
    adapter: TypeAdapter[AnyMethodConfig] = TypeAdapter(MethodConfig)
    engine = EngineConfig(**{**ENGINE, **job["engine"]})
    pair = "unknown" not in job["method"]
    return RunPlan(
        out=Path(job["out"]),
        seed=0,
        data=StreamConfig(path=job["data"], batch=16, streams=4, window=16),
        learners=(FORCE, POSE) if pair else (FORCE,),
        perceptors=(),
        method=adapter.validate_python(job["method"]),
        optim=OptimConfig(name="adam", lr=1e-2, weight_decay=1e-5),
        engine=engine,
        config_text=yaml.safe_dump({"method": job["method"], "engine": job["engine"]}),
    )


def main(job: Mapping[str, Any]) -> None:
    """Train."""
    train(plan(job))
