"""Trains a method that compares views in the real engine; a job of the fork server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from outmodal.data.arrays import SeriesInput
from outmodal.data.augment import Jitter, Scaling, WordDropout
from outmodal.data.stream import StreamConfig
from outmodal.data.tokens import TokenInput
from outmodal.models.learners import MlpLearner, TextLearner
from outmodal.train.engine import EngineConfig
from outmodal.train.methods import AnyMethodConfig, MethodConfig
from outmodal.train.optim import OptimConfig
from outmodal.train.run import RunPlan, train
from tests.train.methods.engine_job import ENGINE

LEARNERS = {
    "force": MlpLearner(
        modality="force",
        widths=(12,),
        input=SeriesInput(length=16, channels=3, augment=(Jitter(),), strong=(Scaling(),)),
    ),
    "text": TextLearner(
        modality="text",
        size="custom",
        width=16,
        depth=2,
        heads=2,
        input=TokenInput(length=6, vocab_size=60, augment=(WordDropout(rate=0.3),)),
    ),
}


def plan(job: Mapping[str, Any]) -> RunPlan:
    """The plan of a job {"out", "data", "method": {...}, "engine": {...}}."""
    adapter: TypeAdapter[AnyMethodConfig] = TypeAdapter(MethodConfig)
    learner = LEARNERS.get(job["method"]["unknown"])
    return RunPlan(
        out=Path(job["out"]),
        seed=0,
        data=StreamConfig(path=job["data"], batch=16, streams=4, window=16),
        learners=() if learner is None else (learner,),
        perceptors=(),
        method=adapter.validate_python(job["method"]),
        optim=OptimConfig(name="adam", lr=3e-3, weight_decay=1e-5),
        engine=EngineConfig(**{**ENGINE, **job["engine"]}),
        config_text=yaml.safe_dump({"method": job["method"], "engine": job["engine"]}),
    )


def main(job: Mapping[str, Any]) -> None:
    """Train."""
    train(plan(job))
