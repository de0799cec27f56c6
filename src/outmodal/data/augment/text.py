"""Augmentations of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from outmodal.data.augment.base import Augment, Form, Probability, Stage, Value

PLACE = "{}"


def _with_place(template: str) -> str:
    if template.count(PLACE) != 1:
        raise ValueError(f"expected {PLACE} once, where the text goes, got '{template}'")
    return template


Template = Annotated[str, AfterValidator(_with_place)]


class Templates(Augment):
    """The text inside of one of several sentences, each equally likely (Radford et al., 2021).

    Attributes:
        templates: Sentences with {} where the text goes.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    stage: ClassVar[Stage] = "sample"
    form: ClassVar[Form] = "text"
    name: Literal["templates"] = "templates"
    templates: Annotated[tuple[Template, ...], Field(min_length=1)]

    def sample(self, value: Value, generator: np.random.Generator) -> Value:
        template = self.templates[int(generator.integers(len(self.templates)))]
        return template.replace(PLACE, str(value))


class WordDropout(Augment):
    """Words are left out independently; one, drawn evenly, stays where all would go.

    Attributes:
        rate: Probability of it (Iyyer et al., 2015).
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    stage: ClassVar[Stage] = "sample"
    form: ClassVar[Form] = "text"
    name: Literal["word_dropout"] = "word_dropout"
    rate: Probability = 0.1

    def sample(self, value: Value, generator: np.random.Generator) -> Value:
        words = str(value).split()
        if not words:
            return value
        stays = generator.random(len(words)) >= self.rate
        if not stays.any():
            stays[int(generator.integers(len(words)))] = True
        return " ".join(word for word, stay in zip(words, stays, strict=True) if stay)


def templates(steps: Sequence[Augment]) -> list[str]:
    """Return the words that templates add to texts, for fitting a vocabulary to them."""
    found = (step.templates for step in steps if isinstance(step, Templates))
    return [template.replace(PLACE, " ") for group in found for template in group]
