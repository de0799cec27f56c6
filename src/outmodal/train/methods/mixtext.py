"""MixText: hidden states of two texts are mixed within the encoder, and their targets alike.

Chen, Yang and Yang, "MixText: Linguistically-Informed Interpolation of Hidden Space for
Semi-Supervised Text Classification" (ACL 2020). The paper guesses the target of an unlabelled text
from its back-translations; here, from views that the input's `augment` list draws (words left out,
other templates around the text), which say less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from outmodal.data.batch import Batch, StreamSpec, View
from outmodal.errors import UserError
from outmodal.models.features import feature_norm
from outmodal.models.learners.layered import Layered
from outmodal.models.objectives.mixtext import (
    divergence_rows,
    mixed,
    sharpen,
    soft_cross_entropy_rows,
)
from outmodal.train import gather
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.labelled import BaselineConfig, stream
from outmodal.train.methods.terms import weighted
from outmodal.train.methods.unlabelled import Unlabelled, check_views, present

PLAIN, VIEW = "plain", "view"
_SALT = 0x7317


class MixTextConfig(BaselineConfig):
    """Mixing of hidden states.

    Attributes:
        views: Augmented views of each unlabelled text, in place of back-translations.
        unlabelled_ratio: Unlabelled texts of a step for each labelled one.
        sharpening: Temperature of the guessed targets; near 0 they are hard labels.
        mix_alpha: The share of the first text is drawn from Beta(alpha, alpha), and is its larger
            side.
        mix_layers: Layers behind which hidden states are mixed, one drawn in each step; 0 mixes
            embeddings. () is 7, 9 and 12 of twelve, and in proportion for other depths.
        lambda_unlabelled: Weight of the unlabelled term at the end of its ramp.
        ramp: Share of the run over which that weight rises from 0.
        encoder_lr_scale: Factor on the learning rate of the learner. The paper's pretrained encoder
            has 0.01 of its classifier's rate.
    """

    name: Literal["mixtext"] = "mixtext"
    views: int = Field(default=2, ge=1)
    unlabelled_ratio: int = Field(default=6, ge=1)
    sharpening: float = Field(default=0.5, gt=0.0)
    mix_alpha: float = Field(default=0.75, gt=0.0)
    mix_layers: tuple[int, ...] = ()
    lambda_unlabelled: float = Field(default=1.0, ge=0.0)
    ramp: float = Field(default=1.0, ge=0.0, le=1.0)
    encoder_lr_scale: float = Field(default=1.0, gt=0.0)

    def build(self, context: Context) -> MixText:
        """Make the method for a run."""
        return MixText(context, self)


@dataclass(frozen=True)
class Texts:
    """Some texts that may be mixed: labelled ones, or one view of unlabelled ones.

    Attributes:
        x: [n, L] tokens.
        target: [n, C] probabilities.
        counts: [n] bool: the text is there.
        labelled: [n] bool: its target is its label.
    """

    x: Tensor
    target: Tensor
    counts: Tensor
    labelled: Tensor

    def everywhere(self) -> Texts:
        """Those of all ranks, in their order. Collective."""
        return Texts(*(gather.all_gather_rows(t) for t in self._columns()))

    def rows(self, chosen: Tensor) -> Texts:
        """Some of them."""
        return Texts(*(t[chosen] for t in self._columns()))

    @staticmethod
    def join(parts: Sequence[Texts]) -> Texts:
        """All of several."""
        return Texts(*(torch.cat(t) for t in zip(*(p._columns() for p in parts), strict=True)))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.x, self.target, self.counts, self.labelled


class MixText(Unlabelled):
    """min CE on mixed labelled + ramp * KL(guess || q) on mixed unlabelled texts."""

    def __init__(self, context: Context, config: MixTextConfig) -> None:
        super().__init__(context, config)
        self.config, self.layers = config, mix_layers(self.learner, config.mix_layers)
        check_views(self.learner, config.name, "augment")
        self.steps = torch.zeros(1, dtype=torch.float64)

    def param_groups(self) -> list[dict[str, Any]]:
        """The learner apart, with its own learning rate."""
        head = [*self.projection.parameters(), *self.classifier.parameters()]
        learner = list(self.learner.parameters())
        scale = self.config.encoder_lr_scale
        return [
            {"name": "learner", "params": learner, "lr_scale": scale},
            {"name": "classifier", "params": head},
        ]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        context, supervision = self.context, self.supervision
        looks = [View(PLAIN, self.unknown, "none")]
        looks += [View(f"{VIEW}{n}", self.unknown) for n in range(self.config.views)]
        count = self.config.unlabelled_ratio * context.batch
        select = supervision.unlabelled
        return [
            stream(context, "labelled", (self.unknown,), supervision.labelled),
            StreamSpec("unlabelled", context.train_split, (), count, select, tuple(looks)),
        ]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        parts = self._parts(batches)
        own = Texts.join(parts)
        rng = np.random.default_rng([self.context.seed, step, _SALT])
        partner = drawn_partners(parts, rng)
        logits, target = self._mixed(own, partner, rng)
        there = own.counts & partner.counts
        shown = soft_cross_entropy_rows(logits, target)
        guessed = divergence_rows(logits, target)
        terms = {
            "supervised": gather.masked_mean(shown, there & own.labelled),
            "unlabelled": gather.masked_mean(guessed, there & ~own.labelled),
        }
        self.steps += self.share(batches["labelled"], self.context.batch)
        return weighted(terms, {"unlabelled": self.config.lambda_unlabelled * self._ramp()})

    def _parts(self, batches: Mapping[str, Batch]) -> list[Texts]:
        """Labelled texts, and each view of the unlabelled ones with its guessed target."""
        labelled, classes = batches["labelled"], len(self.context.classes)
        there = self.usable(labelled) & (labelled.label >= 0)
        known = F.one_hot(labelled.label.clamp_min(0), classes).float()
        parts = [Texts(labelled.x[self.unknown], known, there, torch.ones_like(there))]
        if "unlabelled" in batches:  # absent when every training sample is labelled
            batch = batches["unlabelled"]
            views, here = list(batch.x.values()), batch.valid & present(batch)
            guess = self._guess(views)
            parts += [Texts(x, guess, here, torch.zeros_like(here)) for x in views]
        return parts

    @torch.no_grad()
    def _guess(self, looks: list[Tensor]) -> Tensor:
        """[B, C] sharpened mean prediction over a text's views, without a gradient."""
        logits = self.classify(self.encode(torch.cat(looks)))
        torch.clear_autocast_cache()  # casts of weights made here have no gradient
        q = logits.softmax(dim=1).view(len(looks), -1, logits.shape[1]).mean(dim=0)
        return sharpen(q, self.config.sharpening)

    def _mixed(self, own: Texts, partner: Texts, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Logits and targets of texts, each mixed with its partner."""
        learner = self.learner
        assert isinstance(learner, Layered)
        share = float(rng.beta(self.config.mix_alpha, self.config.mix_alpha))
        share = max(share, 1.0 - share)
        layer = self.layers[int(rng.integers(len(self.layers)))]
        hidden, mask = learner.first(torch.cat([own.x, partner.x]))
        one, other = learner.onward(hidden, mask, 0, layer).chunk(2)
        # places that hold a token of either text: a mixed state is a text of both
        both = torch.stack(mask.chunk(2)).any(dim=0)
        hidden = learner.onward(mixed(one, other, share), both, layer, learner.depth)
        r = learner.pooled(hidden, both)
        logits = self.classify(feature_norm(self.projection(r), self.norm))
        return logits, mixed(own.target, partner.target, share)

    def _ramp(self) -> float:
        """0 at the first step, 1 from `ramp` of the run on."""
        done = float(self.steps) - 1.0
        length = self.config.ramp * self.steps_per_epoch() * self.context.epochs
        return min(1.0, max(0.0, done) / length) if length else 1.0

    def method_state(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        self.steps = state["steps"].clone()


def drawn_partners(parts: Sequence[Texts], rng: np.random.Generator) -> Texts:
    """For each text of this rank one of the whole step's, by one order of all of them, which does
    not depend on how many ranks there are. Collective."""
    wholes = [part.everywhere() for part in parts]
    pool = Texts.join(wholes)
    order = torch.from_numpy(rng.permutation(len(pool.x)))
    places, begin = [], 0
    for part, whole in zip(parts, wholes, strict=True):
        count = len(part.x)
        places.append(torch.arange(count) + begin + gather.row_offset(count))
        begin += len(whole.x)
    return pool.rows(order[torch.cat(places)].to(pool.x.device))


def mix_layers(learner: object, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The layers to mix behind: the asked ones, or 7, 9 and 12 of twelve in proportion.

    Raises:
        UserError: The learner has no layers to step between, or fewer than asked for.
    """
    name = getattr(learner, "modality", "?")
    if not isinstance(learner, Layered):
        raise UserError(
            f"method 'mixtext' mixes hidden states of a text learner, and the learner of '{name}' "
            "has no layers to mix between: choose learner bert on a text modality, or method "
            "freematch"
        )
    wrong = [layer for layer in asked if not 0 <= layer <= learner.depth]
    if wrong:
        raise UserError(
            f"method.mix_layers names layer {wrong[0]}, and the learner of '{name}' has "
            f"{learner.depth}: choose from 0 to {learner.depth}"
        )
    return asked or tuple(sorted({-(-learner.depth * n // 12) for n in (7, 9, 12)}))
