"""Inputs of released perceptors, exactly as their encoders were fed. Modality is data: one class
for each kind of input, and a table of constants for each perceptor."""

from __future__ import annotations

from outmodal.data.perceptor_inputs.audio import FbankInput
from outmodal.data.perceptor_inputs.depth import DepthInput
from outmodal.data.perceptor_inputs.imu import ImuInput
from outmodal.data.perceptor_inputs.picture import CroppedImageInput
from outmodal.data.perceptor_inputs.presets import PRESETS, Family, perceptor_input
from outmodal.data.perceptor_inputs.text import ClipTokenInput
from outmodal.data.perceptor_inputs.video import SampledVideoInput

__all__ = [
    "PRESETS",
    "ClipTokenInput",
    "CroppedImageInput",
    "DepthInput",
    "Family",
    "FbankInput",
    "ImuInput",
    "SampledVideoInput",
    "perceptor_input",
]
