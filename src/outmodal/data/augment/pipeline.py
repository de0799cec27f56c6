"""The augmentations of one input, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from outmodal.data.augment.base import Augment, Stage, Value
from outmodal.data.augment.crop import RandomResizedCrop
from outmodal.data.crop import Box
from outmodal.data.draws import Draw

V = TypeVar("V", bound=Value)
Step = tuple[str, Augment]


class Pipeline:
    """An input's lists of augmentations, each divided by stage; the order within one is kept.

    Every method is the identity where `draw` is None or its list has nothing of that stage.
    """

    def __init__(self, augment: Sequence[Augment], strong: Sequence[Augment] = ()) -> None:
        """Take the lists of the policies "augment" and "strong"."""
        self.lists = {"augment": _named(augment), "strong": _named(strong), "none": []}

    @property
    def random(self) -> bool:
        """Whether something is drawn in the sample stage."""
        steps = (*self.lists["augment"], *self.lists["strong"])
        return any(step.stage == "sample" for _, step in steps)

    def box(self, height: int, width: int, key: str, draw: Draw | None) -> Box | None:
        """Return the part of a picture that is to be resized to the input, or None for all."""
        for word, step in self._of(draw, "sample"):
            if isinstance(step, RandomResizedCrop) and draw is not None:
                return step.box(height, width, draw.generator(key, word))
        return None

    def sample(self, value: V, key: str, draw: Draw | None) -> V:
        """Apply the sample stage to one decoded value, without the crops that `box` gives."""
        for word, step in self._of(draw, "sample"):
            if draw is None or isinstance(step, RandomResizedCrop):
                continue
            generator = draw.generator(key, word)
            if generator.random() < step.p:
                value = step.sample(value, generator)  # type: ignore[assignment]
        return value

    def batch(self, x: Tensor, keys: Tensor, draw: Draw | None) -> Tensor:
        """Apply the batch stage to [B, ...]; films [B, F, C, H, W] alike in all their frames."""
        return self._run(x, keys, draw, "batch")

    def last(self, x: Tensor, keys: Tensor, draw: Draw | None) -> Tensor:
        """Apply the stage after normalisation to [B, ...]; films as `batch` does."""
        return self._run(x, keys, draw, "last")

    def _run(self, x: Tensor, keys: Tensor, draw: Draw | None, stage: Stage) -> Tensor:
        steps = self._of(draw, stage)
        if draw is None or not steps or not len(x):
            return x
        if x.ndim != 5:
            for word, step in steps:
                x = step.batch(x, keys, draw, word)
            return x
        frames = x.shape[1]
        # frames of one film share its key, and so everything that is drawn
        flat, every = x.flatten(0, 1), keys.repeat_interleave(frames, output_size=frames * len(x))
        for word, step in steps:
            flat = step.batch(flat, every, draw, word)
        return flat.view(x.shape)

    def _of(self, draw: Draw | None, stage: Stage) -> list[Step]:
        if draw is None:
            return []
        return [(word, step) for word, step in self.lists[draw.policy] if step.stage == stage]


def _named(configs: Sequence[Augment]) -> list[Step]:
    """Give each augmentation the word of its draws: two alike in one list draw apart."""
    return [(f"{place} {getattr(step, 'name', '')}", step) for place, step in enumerate(configs)]
