"""Trains every method in the real engine, one after the other; see test_every_method.py.

Modalities and labels are so rare that some steps find none of one on one of two ranks. What the
engine does is watched from outside: the whole gradient of each step, which rows met which rank, and
whether what a method remembers is the same on all ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from outmodal.data.arrays import SeriesInput
from outmodal.data.augment import Jitter, Scaling, WordDropout
from outmodal.data.batch import Batch
from outmodal.data.stream import StreamConfig
from outmodal.data.tokens import TokenInput
from outmodal.errors import StoppedEarly
from outmodal.models.learners import MlpLearner, TextLearner
from outmodal.train import gather
from outmodal.train.backend import Backend
from outmodal.train.engine import Engine
from outmodal.train.engine_config import EngineConfig
from outmodal.train.gradients import edits
from outmodal.train.methods import AnyMethodConfig, MethodConfig
from outmodal.train.optim import OptimConfig
from outmodal.train.run import RunPlan, train
from tests.train.methods.engine_job import ENGINE

STEPS = 6  # an epoch of 48 samples
THREE = ["force", "text", "pose"]
ONE = {"unknown": "force", "label_fraction": 0.5}
TEXT = {"unknown": "text", "label_fraction": 0.5}
QUEUE = {"momentum": 0.9, "queue": 20, "contrast_dim": 8}
COX = {"known": ["pose"], "vib_hidden": 16, "vib_latent": 4, "dim": 7}
UNSUP = {**COX, "setting": "unsup", "warmup_epochs": 2, "centroid_min": 1}
BRIDGE = {"name": "infobridge", "modalities": THREE, "buffer": 20}

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "erm": ({"name": "erm", **ONE}, 1),
    "entmin": ({"name": "entmin", **ONE}, 1),
    "ssl": ({"name": "ssl", **ONE}, 1),
    "ssl_unsup": ({"name": "ssl", "unknown": "text", "setting": "unsup"}, 1),
    "moco": ({"name": "moco", **ONE, **QUEUE}, 1),
    "moco_unsup": ({"name": "moco", **ONE, **QUEUE, "setting": "unsup"}, 1),
    "moco_cox": ({"name": "moco_cox", **ONE, **QUEUE, **COX, "warmup_epochs": 1}, 2),
    "moco_cox_unsup": ({"name": "moco_cox", **ONE, **QUEUE, **UNSUP}, 3),
    "freematch": ({"name": "freematch", **ONE, "unlabelled_ratio": 2, "ema": 0.9}, 1),
    "mixtext": ({"name": "mixtext", **TEXT, "unlabelled_ratio": 2}, 1),
    "cox": ({"name": "cox", **ONE, **COX, "warmup_epochs": 1}, 2),
    "cox_unsup": ({"name": "cox", **ONE, **UNSUP}, 3),
    "align": ({"name": "align", "modalities": THREE, "head": {"dim": 8}}, 1),
    "synergy": ({"name": "synergy", **ONE, "targets": "samples", "guide": "pose"}, 1),
    "naive": ({"name": "naive", "modalities": THREE}, 1),
    "multi_task": ({"name": "multi_task", "modalities": THREE, "fuse": "mean_probs"}, 1),
    "missing_detection": ({"name": "missing_detection", "modalities": THREE}, 1),
    "ume_mma": ({"name": "ume_mma", "modalities": THREE, "complete_epochs": 1}, 3),
    "ume_mma_frozen": ({"name": "ume_mma", "modalities": THREE, "freeze_encoders": True}, 2),
    "unimodal": ({"name": "unimodal", "modalities": ["force"]}, 1),
    "joint_train": ({"name": "joint_train", "modalities": THREE}, 1),
    "infonce": ({"name": "infonce", "modalities": THREE, "dim": 8}, 1),
    "ogm_ge": ({"name": "ogm_ge", "modalities": THREE, "begin": 1, "end": 2}, 3),
    "pmr": ({"name": "pmr", "modalities": THREE, "end": 1}, 2),
    "mmpareto": ({"name": "mmpareto", "modalities": THREE}, 1),
    "diagnose_relearn": (
        {"name": "diagnose_relearn", "modalities": THREE, "every": 1, "holdout": 0.2},
        2,
    ),
    "reconboost": (
        {
            "name": "reconboost",
            "modalities": THREE,
            "start_epochs": 1,
            "turn_epochs": 1,
            "together_epochs": 1,
        },
        7,
    ),
    "infobridge": (BRIDGE, 2),
    "infobridge_cluster": ({**BRIDGE, "context": "cluster", "clusters": 3, "n0": 1}, 2),
    "infobridge_alternate": (
        {**BRIDGE, "update": "alternate", "critic": "bilinear", "context": "retrieval"},
        1,
    ),
}
"""Case -> method and epochs, such that every stage has one."""

UNTRAINED = ("random", "aligned")
"""Methods without a step."""

LEARNERS = {
    "force": MlpLearner(
        modality="force",
        widths=(12,),
        input=SeriesInput(length=16, channels=3, augment=(Jitter(),), strong=(Scaling(),)),
    ),
    "text": TextLearner(
        modality="text",
        size="custom",
        width=8,
        depth=2,
        heads=2,
        input=TokenInput(length=6, vocab_size=60, augment=(WordDropout(rate=0.3),)),
    ),
}


def plan(out: Path, data: str, name: str, engine: Mapping[str, Any]) -> RunPlan:
    """The run of a case."""
    method, epochs = CASES[name]
    adapter: TypeAdapter[AnyMethodConfig] = TypeAdapter(MethodConfig)
    used = [method["unknown"]] if "unknown" in method else list(LEARNERS)
    # no clipping: single precision gives the norm of a long gradient to five digits only, and ZeRO
    # computes it in double
    own = {"epochs": epochs, "eval_every": 0, "clip": 0.0, **engine}
    sections = {"method": method, "engine": own}
    return RunPlan(
        out=out,
        seed=0,
        data=StreamConfig(path=data, batch=8, streams=4, window=8),
        learners=tuple(LEARNERS[m] for m in used),
        perceptors=(),
        method=adapter.validate_python(method),
        optim=OptimConfig(name="sgd", lr=0.005, momentum=0.9, weight_decay=1e-4),
        engine=EngineConfig(**{**ENGINE, **own}),
        config_text=yaml.safe_dump(sections),
    )


def main(job: Mapping[str, Any]) -> None:
    """Train each case of {"out", "data", "engine", optional "only", "stops"} in `out`/NAME, with
    ZeRO 1 where a method cannot be trained with `engine`'s; with "stops", it is stopped at those
    steps of every epoch, and goes on each time."""
    for name in job.get("only") or CASES:
        out, engine = Path(job["out"]) / name, dict(job.get("engine", {}))
        if engine.get("strategy") == "zero2" and name in ("ogm_ge", "mmpareto"):
            engine["strategy"] = "zero1"
        run = plan(out, job["data"], name, engine)
        with watched(out, job.get("stops", ())):
            while True:
                try:
                    train(run)
                    break
                except StoppedEarly:
                    continue


@contextmanager
def watched(out: Path, stops: Sequence[int]) -> Iterator[None]:
    """Write what a run showed to `out`/gradients.safetensors and `out`/seen.json, and send SIGTERM
    in the steps `stops` (from 1) of every epoch."""
    step, edit, fit = Engine._step, Backend.edit, Engine.fit
    gradients: dict[str, Tensor] = {}
    seen: dict[str, Any] = {"empty": 0, "stopped": []}

    def stepping(self: Engine, micro: Any, stage: str) -> Any:
        seen["empty"] += empty_on_one_rank(micro)
        if self.at.epoch_step + 1 in stops and self.at.step + 1 < self.total:
            seen["stopped"].append(stage)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, micro, stage)

    def editing(self: Backend, stage: str, number: int) -> None:
        edit(self, stage, number)
        for i, local in enumerate(self.layout.gradients()):
            if local is not None:
                for name, t in self.layout.full(i, local).items():
                    gradients[f"{number}/{name}"] = t.detach().clone()

    def fitting(self: Engine) -> dict[str, float]:
        found = fit(self)
        seen["edits"] = edits(self.method)
        seen["agree"] = alike_on_all_ranks(self.method.method_state())
        return found

    with replaced(
        (Engine, "_step", stepping), (Backend, "edit", editing), (Engine, "fit", fitting)
    ):
        yield
    if gather.is_main():
        save_file(gradients, out / "gradients.safetensors")
        (out / "seen.json").write_text(json.dumps(seen), "utf-8")


@contextmanager
def replaced(*places: tuple[type, str, Callable[..., Any]]) -> Iterator[None]:
    before = [getattr(owner, name) for owner, name, _ in places]
    for owner, name, new in places:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for (owner, name, _), old in zip(places, before, strict=True):
            setattr(owner, name, old)


def empty_on_one_rank(micro: Sequence[Mapping[str, Batch]]) -> int:
    """How many subsets of the rows (those with a modality, or a label) one rank has none of, and
    another has some."""
    held = []
    for batches in micro:
        for _, batch in sorted(batches.items()):
            held += [bool((batch.valid & batch.present[m]).any()) for m in sorted(batch.present)]
            held.append(bool((batch.valid & (batch.label >= 0)).any()))
    every = gather.all_gather_flat(torch.tensor(held, dtype=torch.int64))
    return int((every.any(dim=0) & ~every.all(dim=0)).sum())


def alike_on_all_ranks(state: Mapping[str, Tensor]) -> bool:
    digest = hashlib.sha256()
    for name, t in sorted(state.items()):
        digest.update(name.encode() + t.detach().cpu().contiguous().numpy().tobytes())
    return len(set(gather.all_gather_objects(digest.hexdigest()))) == 1
