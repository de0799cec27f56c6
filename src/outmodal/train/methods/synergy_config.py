"""The keys of synergy training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from outmodal.data.mixing import MixingConfig
from outmodal.models.features import FeatureNorm
from outmodal.models.perceptors import (
    ExportedPerceptor,
    HubPerceptor,
    ImageBindPerceptor,
    LanguageBindPerceptor,
)
from outmodal.train.methods.labelled import LabelledConfig

if TYPE_CHECKING:
    from outmodal.train.methods.base import Context
    from outmodal.train.methods.synergy import Synergy

Targets = Literal["text", "samples", "gaussian"]
Assign = Literal["per_step", "per_sample", "per_class", "constant"]
LatentLoss = Literal["mse", "cosine"]
Reduction = Literal["mean", "sum_half"]
Helper = ExportedPerceptor | HubPerceptor | ImageBindPerceptor | LanguageBindPerceptor
LatentMap = Literal["linear_ln", "linear", "side"]


class SynergyConfig(LabelledConfig):
    """Synergy: a frozen encoder of one modality helps to train another (Lee and Yoon, ICLR 2025).

    Attributes:
        fidelity: `rec`, the project's resolution, or `code`, the authors' code: latent terms are
            means over batch and features; `paper`, the printed equation: half the squared
            distance, a sum over features.
        alpha: Weight of the latent term; the classification term weighs 1 - alpha. 0 is plain
            cross-entropy of the same architecture, the baseline to compare with.
        latent_loss: Mean squared error, or 1 - cosine, between latents and targets.
        latent_reduction: Of mse: mean over features, or half of the sum; None is what
            `fidelity` says.
        latent_map: linear_ln or linear: the representation is mapped to the targets' size, with or
            without LayerNorm behind, and classifier and latent term both read the result. side:
            the classifier reads the representation, so that a bias of the map alone can
            fit targets that hardly vary; kept as an ablation.
        targets: text: features of sentences by `helper`; samples: features of `guide` of other
            samples, by stored vectors or a live perceptor; gaussian: noise as long as what `helper`
            or `guide` gives (or of `dim` numbers), a control that holds nothing of any encoder.
        level: Supervision. 1: 1,000 sentences about nothing. 2: `sentence` with a number. 3: the
            sample's own caption or other paired description, whose features `guide` holds.
        target_assign: Which number a sample gets. per_step: another one in every step, each
            number once before any comes again; per_sample: a drawn one that it keeps; per_class:
            its class, which is supervision; constant: one for all, a control. Of gaussian:
            fresh noise in every step, or one of as many fixed vectors as there are classes. None:
            per_step, and per_sample at level 1. Nothing but per_step goes with `guide`.
        sentence: What the number is put into.
        helper: The frozen text encoder, for targets of text; its `modality` may be any name.
        guide: The modality whose features are targets, for level 3 and for samples.
        target_norm: Scale of the targets: none (as the encoder gives them), l2, or l2_sqrtd
            (length sqrt(d)). None: none for sentences, l2_sqrtd for features of `guide`, which
            are stored as unit vectors.
        smoothing: Label smoothing of the classification term.
        mixing: MixUp and CutMix of neighbouring samples: `mixup`, `cutmix`, `p`, `switch`. A
            mixed sample keeps its own target.
    """

    name: Literal["synergy"] = "synergy"
    label_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    fidelity: Literal["rec", "paper", "code"] = "rec"
    alpha: float = Field(default=0.5, ge=0.0, le=1.0)
    latent_loss: LatentLoss = "mse"
    latent_reduction: Reduction | None = None
    latent_map: LatentMap = "linear_ln"
    targets: Targets = "text"
    level: Literal[1, 2, 3] = 2
    target_assign: Assign | None = None
    sentence: str = "This is about class {}."
    helper: Helper | None = Field(default=None, discriminator="name")
    guide: str = ""
    target_norm: FeatureNorm | None = None
    smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    mixing: MixingConfig | None = None
    _kept: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _sources_are_named(self) -> SynergyConfig:
        if self.reads_guide and not self.guide:
            raise ValueError(
                "targets 'samples' and level 3 need `guide`: the vector modality whose features "
                "are the targets"
            )
        if self.targets == "text" and self.level < 3 and self.helper is None:
            raise ValueError(
                "targets 'text' need `helper`: the frozen text encoder, as "
                "{name: hub, modality: text, path: FOLDER}"
            )
        if self.reads_guide and self.target_assign not in (None, "per_step"):
            raise ValueError(
                f"target_assign '{self.target_assign}' picks from a table, and the features of "
                "`guide` are none: leave it out; `targets: gaussian` with target_assign constant "
                "is the control"
            )
        if self.guide and self.guide == self.unknown:
            raise ValueError("`guide` and `unknown` are the same modality")
        return self

    @property
    def reads_guide(self) -> bool:
        """Whether targets are features that come with the data."""
        return self.targets == "samples" or (self.targets == "text" and self.level == 3)

    def resolved(self) -> SynergyConfig:
        """The same configuration with every key that a preset decides written out."""
        reduction = self.latent_reduction or ("sum_half" if self.fidelity == "paper" else "mean")
        assign = self.target_assign or ("per_sample" if self.level == 1 else "per_step")
        of_guide = self.reads_guide or (bool(self.guide) and self.helper is None)
        norm = self.target_norm or ("l2_sqrtd" if of_guide else "none")
        return self.model_copy(
            update={"latent_reduction": reduction, "target_assign": assign, "target_norm": norm}
        )

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """What `restored` was given; empty in a new run."""
        return self._kept

    def restored(self, state: Mapping[str, Tensor]) -> SynergyConfig:
        """The configuration of a run whose targets are known: it needs no helper to be built.

        Args:
            state: The method's state in a checkpoint.
        """
        changed = self.model_copy()
        changed._kept = {name: held for name, held in state.items() if name.startswith("targets.")}
        return changed

    def imagined(self, classes: int) -> SynergyConfig:
        """The configuration with zeros, or noise, in the place of what the helper would say, of
        `dim` or 1,024 numbers a row, for estimates where neither data nor helper are at hand."""
        if self.helper is None or self.reads_guide:
            return self
        dim = self.dim or 1024
        if self.targets == "gaussian" and self.target_assign in (None, "per_step"):
            return self.restored({"targets.noise": torch.tensor([dim, 1.0])})
        many = self.targets == "text" and self.level == 1
        return self.restored({"targets.table": torch.zeros(1000 if many else classes, dim)})

    def build(self, context: Context) -> Synergy:
        """Make the method for a run."""
        from outmodal.train.methods.synergy import Synergy

        return Synergy(context, self.resolved())
