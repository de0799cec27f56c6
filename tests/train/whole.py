"""A small method whose objective compares the whole batch, and runs of it in other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.base import Config
from outmodal.data.batch import Batch, StreamSpec
from outmodal.models.kernels.exchange import Exchange
from outmodal.models.kernels.nce import nce
from outmodal.train import gather
from outmodal.train.methods.base import Context, Stage, StepOutput, WholeBatchMethod
from outmodal.train.run import RunPlan, train
from tests.train.plans import tiny_plan


class WholeConfig(Config):
    """Keys of the method; `width` is that of its hidden layer, `nan_steps` as the probe's."""

    name: Literal["whole"] = "whole"
    exchange: Literal["auto", "gather", "ring"] = "auto"
    dropout: float = 0.0
    norm: bool = False
    width: int = 8
    nan_steps: tuple[int, ...] = ()

    def build(self, context: Context) -> Whole:
        return Whole(context, self)


class Contrast(nn.Module):
    """The objective, with parameters of its own in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([1.5]))

    def forward(self, a: Tensor, b: Tensor, present: Tensor, exchange: Exchange) -> Tensor:
        scale = self.log_scale.float().exp()
        return nce(a, b, scale, present=present, exchange=exchange, impl="tiled")


class Whole(WholeBatchMethod):
    """Contrasts two projections of `pose`; rows of class 1 do not count."""

    def __init__(self, context: Context, config: WholeConfig) -> None:
        super().__init__(context)
        self.config = config
        self.learner = context.learners["pose"]
        self.drop = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(self.learner.dim, config.width)
        self.norm = nn.BatchNorm1d(config.width) if config.norm else nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(config.width, 5) for _ in range(2))
        self.contrast = Contrast()
        self.shift = nn.Parameter(torch.zeros(()))

    def stages(self) -> Sequence[Stage]:
        return [Stage("all", self.context.epochs)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        return [StreamSpec("all", self.context.train_split, ("pose",), self.context.batch)]

    def encode(self, batches: Mapping[str, Batch], stage: str, step: int) -> dict[str, Tensor]:
        h = self.learner(batches["all"].x["pose"])
        h = self.drop(torch.tanh(self.norm(self.hidden(self.drop(h)))))
        a, b = (F.normalize(head(h).float(), dim=1) for head in self.heads)
        return {"a": a, "b": b, "odd": batches["all"].index % 2 == 1}

    def objective(
        self, encoded: Mapping[str, Tensor], batches: Mapping[str, Batch], stage: str, step: int
    ) -> StepOutput:
        batch = batches["all"]
        assert not batch.x
        assert torch.equal(encoded["odd"], batch.index % 2 == 1)
        exchange = gather.exchange(self.config.exchange, even=True)
        loss = self.contrast(encoded["a"], encoded["b"], batch.label != 1, exchange)
        pulled = self.drop((encoded["a"] * encoded["b"]).sum(1)) - self.shift
        loss = loss + 0.1 * gather.masked_mean(pulled**2, batch.label != 1)
        if step in self.config.nan_steps:
            loss = loss * float("nan")
        return StepOutput(loss, {"scale": self.contrast.log_scale.detach().exp()[0]})

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        return self.encode({"all": batch}, "all", 0)


def whole_plan(out: Path, sections: Mapping[str, Any]) -> RunPlan:
    """A run of the method; sections as `tiny_plan`'s."""
    rest = {k: v for k, v in sections.items() if k not in ("out", "method")}
    config = WholeConfig(**sections.get("method", {}))
    return replace(tiny_plan(out, **rest), method=config)  # type: ignore[arg-type]


def run(job: Mapping[str, Any]) -> None:
    """Runs on each rank: train {"plan": sections}."""
    train(whole_plan(Path(job["plan"]["out"]), job["plan"]))
