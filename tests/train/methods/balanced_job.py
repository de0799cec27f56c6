"""Trains InfoBridge and its comparators in the real engine, one run after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from outmodal.errors import StoppedEarly
from outmodal.train.optim import OptimConfig
from outmodal.train.run import train
from tests.train.methods.engine_job import plan

EPOCHS, STEPS = 4, 4
SGD = OptimConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)  # as in the papers

EDITING: dict[str, dict[str, Any]] = {
    "ogm_ge": {"name": "ogm_ge", "begin": 1, "end": 3},
    "mmpareto": {"name": "mmpareto"},
}
"""Methods that change gradients."""

METHODS: dict[str, dict[str, Any]] = {
    "unimodal": {"name": "unimodal", "modalities": ["force"]},
    "joint_train": {"name": "joint_train"},
    "infonce": {"name": "infonce", "dim": 8},
    "pmr": {"name": "pmr", "end": 3},
    "diagnose_relearn": {"name": "diagnose_relearn", "every": 1, "holdout": 0.2},
    "reconboost": {
        "name": "reconboost",
        "start_epochs": 1,
        "turn_epochs": 1,
        "together_epochs": 1,
    },
    "infobridge": {"name": "infobridge", "buffer": 40},
    "infobridge_cluster": {"name": "infobridge", "buffer": 40, "context": "cluster", "clusters": 3},
    "infobridge_alternate": {
        "name": "infobridge",
        "buffer": 40,
        "update": "alternate",
        "critic": "bilinear",
        "context": "retrieval",
    },
}


def main(job: Mapping[str, Any]) -> None:
    """Train each method of {"out", "data", "engine", optional "only"} in `out`/NAME; one that is
    stopped goes on in the same process."""
    for name in job.get("only") or [*METHODS, *EDITING]:
        method = (METHODS | EDITING)[name]
        engine = {"epochs": EPOCHS, "eval_every": 0, **job["engine"]}
        made = plan({**job, "out": Path(job["out"]) / name, "method": method, "engine": engine})
        run = replace(made, optim=SGD)
        try:
            train(run)
        except StoppedEarly:
            train(run)
