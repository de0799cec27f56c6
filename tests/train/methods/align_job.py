"""Trains alignment under every objective in the real engine, one run after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from outmodal.data.arrays import SeriesInput
from outmodal.data.inputs import ImageInput
from outmodal.data.stream import StreamConfig
from outmodal.models.learners import MlpLearner
from outmodal.train.engine import EngineConfig
from outmodal.train.methods import AlignConfig
from outmodal.train.optim import OptimConfig
from outmodal.train.run import RunPlan, train

ENGINE = {"device": "cpu", "threads": 1, "log_every": 1, "timeout": 5.0, "epochs": 1}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"name": "clip"},
    "clip-ib": {"name": "clip_ib"},
    "siglip": {"name": "siglip"},
    "symile": {"name": "symile"},
    "gram": {"name": "gram"},
    "triangle": {"name": "triangle"},
    "ova-ib": {"name": "ova_ib", "temperature": 0.1},
    "ova-ib-mlp": {"name": "ova_ib", "temperature": 0.1, "projector": "mlp"},
}
LEARNERS = (
    MlpLearner(modality="force", widths=(12,), input=SeriesInput(length=16, channels=3)),
    MlpLearner(modality="image", widths=(12,), input=ImageInput(size=(12, 12), channels=1)),
)


def plan(out: Path, data: str, objective: Mapping[str, Any], engine: Mapping[str, Any]) -> RunPlan:
    """A run that aligns two learners' modalities with a vector."""
    method = {"modalities": ["force", "image", "pose"], "head": {"dim": 8}, "objective": objective}
    return RunPlan(
        out=out,
        seed=0,
        data=StreamConfig(path=data, batch=16, streams=4, window=16),
        learners=LEARNERS,
        perceptors=(),
        method=AlignConfig.model_validate(method),
        optim=OptimConfig(name="adam", lr=3e-3, weight_decay=1e-5),
        engine=EngineConfig(**{**ENGINE, **engine}),
        config_text=yaml.safe_dump({"method": method, "engine": dict(engine)}),
    )


def main(job: Mapping[str, Any]) -> None:
    """Train each objective of {"out", "data", "engine", optional "only"} in `out`/NAME."""
    for name in job.get("only") or OBJECTIVES:
        train(plan(Path(job["out"]) / name, job["data"], OBJECTIVES[name], job["engine"]))
