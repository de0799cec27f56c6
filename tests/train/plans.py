"""Plans of tiny runs, made from JSON so that they can be sent to another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from outmodal.data.inputs import VectorInput
from outmodal.data.stream import StreamConfig
from outmodal.models.learners import MlpLearner
from outmodal.train.engine import EngineConfig
from outmodal.train.methods import CoxConfig
from outmodal.train.optim import OptimConfig
from outmodal.train.run import RunPlan
from tests.data.tiny import make_tiny
from tests.train.probe import ProbeConfig

DIM = 7
ENGINE = {"device": "cpu", "threads": 1, "log_every": 1, "timeout": 5.0, "keep": 2}


COX = CoxConfig(
    unknown="pose",
    known=("image",),
    label_fraction=0.5,
    select_fraction=0.5,
    warmup_epochs=1,
    vib_hidden=16,
    vib_latent=8,
    batch_anchors=4,
)
"""Learns `pose` from features of `image`, as small as it goes."""


def tiny_data(root: Path, samples: int = 96) -> str:
    """A data set with the vector modality `pose`; returns its path."""
    return str(make_tiny(root, samples, 4, ("pose",), test=20).root)


def tiny_plan(
    out: Path,
    data: str,
    engine: Mapping[str, Any] | None = None,
    method: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    stream: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> RunPlan:
    """A run of the probe. Sections are overrides of the tiny defaults."""
    sections = {
        "seed": seed,
        "data": {"path": data, "batch": 16, "streams": 4, "window": 16, **(stream or {})},
        "method": dict(method or {}),
        "optim": {"name": "adam", "lr": 1e-2, "weight_decay": 1e-2, **(optim or {})},
        "engine": {**ENGINE, "epochs": 2, "checkpoint_every": 100, **(engine or {})},
    }
    return RunPlan(
        out=out,
        seed=seed,
        data=StreamConfig(**sections["data"]),
        learners=(MlpLearner(modality="pose", widths=(9, 11), input=VectorInput(dim=DIM)),),
        perceptors=(),
        method=ProbeConfig(**sections["method"]),  # type: ignore[arg-type]
        optim=OptimConfig(**sections["optim"]),
        engine=EngineConfig(**sections["engine"]),
        config_text=yaml.safe_dump(sections),
    )


def lines(out: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl of a run holds."""
    return [json.loads(row) for row in (out / "metrics.jsonl").read_text("utf-8").splitlines()]


def losses(out: Path) -> list[float]:
    """Training losses of a run in the order of steps."""
    return [row["values"]["loss"] for row in lines(out) if row["split"] == "train"]


def newest(out: Path) -> Path:
    """The checkpoint that `latest` names."""
    folder = out / "checkpoints"
    return folder / (folder / "latest").read_text("utf-8").strip()
