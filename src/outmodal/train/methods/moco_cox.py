"""MoCo + COX: COX with the contrast of MoCo as one more term of every step's loss.

Table 6 of Huang et al. (ICLR 2025) combines the two without saying how. Here both train the same
learner from the first step to the last: COX on its own streams as ever, MoCo on two augmented views
of every sample of the unknown modality, which needs neither labels nor known features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.models.heads import ProjectionHead
from outmodal.train import gather
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.cox import Cox
from outmodal.train.methods.cox_base import CoxBase
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.cox_unsup import CoxUnsupervised
from outmodal.train.methods.moco import QUERY, VIEWS, Contrast, MocoKeys, view_stream
from outmodal.train.methods.terms import logged
from outmodal.train.methods.unlabelled import check_views

_PREFIX = "moco/"


class MocoCoxConfig(CoxConfig, MocoKeys):
    """COX with the contrast of MoCo beside its own terms.

    Attributes:
        lambda_moco: Weight of the contrast.
    """

    name: Literal["moco_cox"] = "moco_cox"  # type: ignore[assignment]
    lambda_moco: float = Field(default=1.0, ge=0.0)

    def build(self, context: Context) -> MocoCox | MocoCoxUnsupervised:
        """Make the method for a run."""
        return (MocoCoxUnsupervised if self.setting == "unsup" else MocoCox)(context, self)


class _WithContrast(CoxBase):
    """Adds the contrast to a setting of COX, which follows it in the order of resolution."""

    def __init__(self, context: Context, config: MocoCoxConfig) -> None:
        super().__init__(context, config)
        check_views(self.learner, config.name, "augment")
        self.contrast_head = ProjectionHead(
            self.learner.dim, config.contrast_dim, config.contrast_head
        )
        self.contrast = Contrast(context, self.learner, self.contrast_head, config)
        self.lambda_moco = config.lambda_moco

    def param_groups(self) -> list[dict[str, Any]]:
        head = {"name": "contrast", "params": list(self.contrast_head.parameters())}
        return [*super().param_groups(), head]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        own = super().streams(stage)  # type: ignore[safe-super]
        return [*own, view_stream(self.context, self.unknown)]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        views = batches[VIEWS]
        own = {name: batch for name, batch in batches.items() if name != VIEWS}
        cox = super().forward(own, stage, step)  # type: ignore[safe-super]
        share = len(gather.all_gather_rows(views.valid)) / self.context.batch
        moco = self.contrast.loss(self.learner(views.x[QUERY]), views, share)
        both = logged(cox.loss + self.lambda_moco * moco, {"loss/moco": moco})
        return StepOutput(both.loss, {**cox.logs, **both.logs})

    def method_state(self) -> dict[str, Tensor]:
        more = {f"{_PREFIX}{name}": t for name, t in self.contrast.state().items()}
        return super().method_state() | more

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_method_state(state)
        self.contrast.load(
            {k.removeprefix(_PREFIX): t for k, t in state.items() if k.startswith(_PREFIX)}
        )


class MocoCox(_WithContrast, Cox):
    """With few labelled samples, `setting: semi`."""


class MocoCoxUnsupervised(_WithContrast, CoxUnsupervised):
    """Without labels and pairs, `setting: unsup`."""
