"""Late fusion that takes modalities away from samples in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.train.masks import Drops
from outmodal.train.methods.base import Context, Passes
from outmodal.train.methods.late import Answer, LateConfig, LateFusion


class Dropping(LateFusion):
    """Late fusion whose samples lose modalities, by a draw of seed, epoch and key.

    Attributes:
        pattern: What draws.
        epoch: The current epoch's number, part of a checkpoint.
    """

    pairs_needed = False  # a sample that lacks a modality counts as one that lost it

    def __init__(
        self,
        context: Context,
        config: LateConfig,
        pattern: Drops,
        *,
        answer: Answer = "class",
        extra: int = 0,
    ) -> None:
        super().__init__(context, config, answer=answer, extra=extra)
        self.pattern, self.epoch = pattern, 0

    def gone(self, batch: Batch) -> dict[str, Tensor]:
        """modality -> [B] bool, rows that lose it in this epoch."""
        seed, present = self.context.seed, self.presence(batch)
        taken = self.pattern.taken(seed, self.epoch, batch.key, present)
        return dict(zip(self.modalities, taken.unbind(dim=1), strict=True))

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        self.epoch = epoch
        return super().on_epoch_start(epoch, stage, passes)

    def method_state(self) -> dict[str, Tensor]:
        return {"epoch": torch.tensor(self.epoch)}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        self.epoch = int(state["epoch"])
