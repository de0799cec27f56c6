"""The registry of augmentations: what is drawn anew for a sample in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, get_args

from pydantic import Field

from outmodal.data.augment.base import Augment, Form, Stage
from outmodal.data.augment.blur import GaussianBlur
from outmodal.data.augment.colour import ColorJitter, Grayscale, Solarize
from outmodal.data.augment.crop import PadCrop, RandomResizedCrop
from outmodal.data.augment.erasing import RandomErasing
from outmodal.data.augment.features import FeatureDropout, FeatureNoise
from outmodal.data.augment.flip import HorizontalFlip, VerticalFlip
from outmodal.data.augment.pipeline import Pipeline
from outmodal.data.augment.rand_augment import RandAugment
from outmodal.data.augment.sound import Gain, SoundNoise, TimeShift
from outmodal.data.augment.spec_augment import SpecAugment
from outmodal.data.augment.steps import ChannelDropout, Jitter, Scaling, TimeMask, Window
from outmodal.data.augment.text import Templates, WordDropout
from outmodal.errors import nearest

AnyAugment = (
    RandomResizedCrop
    | PadCrop
    | HorizontalFlip
    | VerticalFlip
    | ColorJitter
    | Grayscale
    | GaussianBlur
    | Solarize
    | RandAugment
    | RandomErasing
    | Gain
    | SoundNoise
    | TimeShift
    | SpecAugment
    | Jitter
    | Scaling
    | Window
    | ChannelDropout
    | TimeMask
    | FeatureNoise
    | FeatureDropout
    | Templates
    | WordDropout
)
AugmentConfig = Annotated[AnyAugment, Field(discriminator="name")]


def misfit(step: Augment, reader: str, kinds: Sequence[str], forms: Sequence[Form]) -> str | None:
    """Say why an augmentation has no place in an input, and what has; None where it fits.

    Args:
        step: The augmentation.
        reader: Name of the input.
        kinds: Modality kinds that the input reads.
        forms: What its transform lets augmentations change.
    """
    name = str(getattr(step, "name", ""))
    if step.form in forms and set(step.kinds) & set(kinds):
        return None
    if not forms:
        return f"input '{reader}' takes no augmentation: leave out '{name}'"
    options: list[type[Augment]] = list(get_args(AnyAugment))
    fitting = [
        str(option.model_fields["name"].default)
        for option in options
        if option.form in forms and set(option.kinds) & set(kinds)
    ]
    return (
        f"augmentation '{name}' is for {' and '.join(step.kinds)} ({step.form}), "
        f"not for input '{reader}'{nearest(name, fitting)}"
    )


__all__ = ["AnyAugment", "Augment", "AugmentConfig", "Form", "Pipeline", "Stage", "misfit"]
