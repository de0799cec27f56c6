"""The registry of inputs: how a decoded value becomes what a model reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from outmodal.data.arrays import SeriesInput, VectorInput
from outmodal.data.manifest import Modality
from outmodal.data.moving import VideoInput
from outmodal.data.noise import NoiseConfig
from outmodal.data.picture import ImageInput
from outmodal.data.tokens import TokenInput
from outmodal.data.transform import BaseInput, Transform, Value
from outmodal.data.waveform import LogMelInput, WaveformInput
from outmodal.errors import UserError

InputConfig = Annotated[
    ImageInput | WaveformInput | LogMelInput | TokenInput | SeriesInput | VectorInput | VideoInput,
    Field(discriminator="name"),
]


def vector_input_for(spec: Modality) -> VectorInput:
    """Return the input of a vector modality that no learner reads, as it is stored.

    Raises:
        UserError: The modality is not a vector, or its record gives no size.
    """
    if spec.kind != "vector" or spec.shape is None or len(spec.shape) != 1 or spec.shape[0] < 1:
        raise UserError(
            f"expected a modality of kind vector with one fixed size, got kind {spec.kind} with "
            f"shape {spec.shape}: give this modality a learner or a perceptor"
        )
    return VectorInput(dim=spec.shape[0])


__all__ = [
    "BaseInput",
    "ImageInput",
    "InputConfig",
    "LogMelInput",
    "NoiseConfig",
    "SeriesInput",
    "TokenInput",
    "Transform",
    "Value",
    "VectorInput",
    "VideoInput",
    "WaveformInput",
    "vector_input_for",
]
