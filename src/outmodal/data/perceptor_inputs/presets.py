"""The released constants of ImageBind and LanguageBind: which input each of their kinds reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from outmodal.data.perceptor_inputs.audio import FbankInput
from outmodal.data.perceptor_inputs.depth import DepthInput
from outmodal.data.perceptor_inputs.geometry import CLIP_MEAN, CLIP_STD
from outmodal.data.perceptor_inputs.imu import ImuInput
from outmodal.data.perceptor_inputs.picture import CroppedImageInput
from outmodal.data.perceptor_inputs.text import ClipTokenInput
from outmodal.data.perceptor_inputs.video import SampledVideoInput
from outmodal.data.transform import BaseInput
from outmodal.errors import UserError, nearest

Family = Literal["imagebind", "languagebind"]

KINECT_FOCAL = 518.857901
"""Focal length in pixels of the first Kinect at 640 x 480, as calibrated for NYU Depth v2."""

_CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD}
_IMAGEBIND: dict[str, tuple[type[BaseInput], Mapping[str, Any]]] = {
    "image": (CroppedImageInput, {"filter": "pillow", **_CLIP}),
    "video": (SampledVideoInput, {"clips": 5, "frames": 2, "crops": 3, **_CLIP}),
    "audio": (FbankInput, {"clips": 3, "mels": 128, "frames": 204, "mean": -4.268, "std": 9.138}),
    "depth": (
        DepthInput,
        {
            "channels": 1,
            "antialias": True,
            "farthest": 50.0,
            "focal": KINECT_FOCAL,
            "mean": (0.0418,),
            "std": (0.0295,),
        },
    ),
    # without mean and std: measured to be better, see ImageBind's pull request 73
    "thermal": (CroppedImageInput, {"channels": 1, "mean": (0.0,), "std": (1.0,)}),
    "text": (ClipTokenInput, {"padding": 0, "unescape": "always"}),
    "imu": (ImuInput, {}),
}
_LANGUAGEBIND: dict[str, tuple[type[BaseInput], Mapping[str, Any]]] = {
    "image": (CroppedImageInput, {"filter": "tensor", **_CLIP}),
    "video": (SampledVideoInput, {"frames": 8, **_CLIP}),
    "audio": (FbankInput, {"mels": 112, "frames": 1036, "mean": -4.2677393, "std": 9.1379948}),
    "depth": (DepthInput, {"farthest": 10.0, **_CLIP}),
    "thermal": (CroppedImageInput, {"filter": "tensor", **_CLIP}),
    "text": (ClipTokenInput, {"padding": 49407, "unescape": "outside_tags"}),
}
PRESETS = {"imagebind": _IMAGEBIND, "languagebind": _LANGUAGEBIND}
ALIASES = {"vision": "image", "language": "text"}


def perceptor_input(family: Family, modality_kind: str, **settings: Any) -> BaseInput:
    """Return the input that a released perceptor reads, with some settings changed.

    Shapes that `.build(...)`'s transform gives, without the batch:

    | kind | imagebind | languagebind |
    |---|---|---|
    | image (or vision) | 3, 224, 224 | 3, 224, 224 |
    | video | 15, 3, 2, 224, 224 | 3, 8, 224, 224 |
    | audio | 3, 1, 128, 204 | 3, 112, 1036 |
    | depth | 1, 224, 224 | 3, 224, 224 |
    | thermal | 1, 224, 224 | 3, 224, 224 |
    | text (or language) | 77, int64 | 77, int64 |
    | imu | 6, 2000 | |

    Args:
        family: Whose constants to take.
        modality_kind: One of the table.
        settings: Fields of the input to change. What a LanguageBind checkpoint's vision_config
            says belongs here: `mels` (num_mel_bins), `frames` (target_length or num_frames),
            `mean` (audio_mean), `std` (twice audio_std), `farthest` (max_depth), `size`.

    Raises:
        UserError: An unknown family or kind, or a setting that the input does not take.
    """
    if family not in PRESETS:
        raise UserError(f"perceptor family '{family}'{nearest(family, PRESETS)}")
    kinds = PRESETS[family]
    kind = ALIASES.get(modality_kind, modality_kind)
    if kind not in kinds:
        raise UserError(
            f"{family} has no input for '{modality_kind}'{nearest(kind, [*kinds, *ALIASES])}"
        )
    make, constants = kinds[kind]
    try:
        return make(**{**constants, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{family} input for {kind}: {where}: {first['msg']}") from None
