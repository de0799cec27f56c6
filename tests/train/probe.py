"""A small method that uses everything an engine must keep: stages, a group that is idle at
first, a scalar parameter, dropout, counter-based noise, sets formed from a full pass, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.data.batch import Batch, StreamSpec
from outmodal.train import gather
from outmodal.train.methods.base import Context, Method, Passes, Stage, StepOutput
from outmodal.train.methods.settings import MethodSettings


class ProbeConfig(MethodSettings):
    """Keys of the probe; `nan_steps` are steps whose loss is not a number."""

    name: Literal["probe"] = "probe"
    dropout: float = 0.0
    second: int = 1
    nan_steps: tuple[int, ...] = ()
    norm: bool = False
    rows_only: bool = False
    frozen: bool = False

    def build(self, context: Context) -> Probe:
        return Probe(context, self)


class Probe(Method):
    """Classifies `pose` with one head, and from epoch `second` on with another one too."""

    def __init__(self, context: Context, config: ProbeConfig) -> None:
        super().__init__(context)
        self.config = config
        self.learner = context.learners["pose"]
        self.drop = nn.Dropout(config.dropout)
        self.norm = nn.BatchNorm1d(self.learner.dim) if config.norm else nn.Identity()
        self.head = nn.Linear(self.learner.dim, len(context.classes))
        self.late = nn.Linear(self.learner.dim, len(context.classes))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.fixed: nn.Module = nn.Identity()
        if config.frozen:
            self.fixed = nn.Linear(self.learner.dim, self.learner.dim).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(3))
        self.chosen = torch.zeros(0, dtype=torch.int64)
        self.starts = 0

    def stages(self) -> Sequence[Stage]:
        rest = self.context.epochs - self.config.second
        return [Stage("one", self.config.second), Stage("both", rest)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        context = self.context
        specs = [StreamSpec("all", context.train_split, ("pose",), context.batch)]
        if self.config.rows_only:
            return specs
        chosen = np.asarray(self.chosen.tolist(), dtype=np.int64)
        return [*specs, StreamSpec("some", context.train_split, ("pose",), context.batch, chosen)]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches["all"]
        noise = gather.seeded_normal(len(batch), self.learner.dim, self.context.seed, step)
        noise = noise.to(batch.index.device)
        r = self.norm(self.drop(self.fixed(self.learner(batch.x["pose"]))))
        if not self.config.rows_only:
            r = r + 0.01 * noise
        logits = self.head(r).float() * self.scale
        mask = batch.label != 1  # so that ranks hold unequal numbers of rows that count
        if self.config.rows_only:
            mask = batch.valid
        loss = gather.masked_mean(F.cross_entropy(logits, batch.label, reduction="none"), mask)
        if stage == "both":
            late = self.late(r).float()
            loss = loss + gather.masked_mean(F.cross_entropy(late, batch.label, reduction="none"))
        if "some" in batches:
            z = gather.gather_with_grad(self.learner(batches["some"].x["pose"]).float())
            loss = loss + 0.1 * z.mean(dim=0).square().mean()
        if step in self.config.nan_steps:
            loss = loss * float("nan")
        with torch.no_grad():
            self.seen.mul_(0.9).add_(gather.all_gather_rows(logits.detach()).mean(dim=0) * 0.1)
        return StepOutput(loss, {"scale": self.scale.detach().clone()})

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.head(self.norm(self.learner(batch.x["pose"]))).float() * self.scale}

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        spec = StreamSpec("judge", self.context.train_split, ("pose",), self.context.batch)
        logits = passes.infer("logits", spec)["logits"]
        weight = passes.weights(self.head)["weight"]
        best = logits.max(dim=1).values.argsort(descending=True, stable=True)[:16]
        self.chosen = best.sort().values
        self.starts += 1
        return {"weight": float(weight.abs().sum()), "confidence": float(logits.max())}

    def evaluate(self, passes: Passes) -> dict[str, float]:
        spec = StreamSpec("evaluate", self.context.eval_split, ("pose",), self.context.batch)
        logits = passes.infer("logits", spec)["logits"]
        truth = torch.from_numpy(self.context.labels[self.context.eval_split])
        right = (logits.argmax(dim=1) == truth).float().mean()
        return {"top1": float(right), "loss": float(F.cross_entropy(logits, truth))}

    def param_groups(self) -> list[dict[str, Any]]:
        late = list(self.late.parameters())
        held = {id(p) for p in late}
        rest = [p for p in self.parameters() if id(p) not in held and p.requires_grad]
        return [{"name": "main", "params": rest}, {"name": "late", "params": late, "lr_scale": 2.0}]

    def method_state(self) -> dict[str, Tensor]:
        return {"chosen": self.chosen, "starts": torch.tensor(self.starts)}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        self.chosen = state["chosen"].clone()
        self.starts = int(state["starts"])
