"""Encoders for modalities of any data set, by their kind, where a recipe does not bring its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from outmodal.data.manifest import Modality
from outmodal.errors import UserError

WIDTH = 256
_SMALLEST_PICTURE = 28
_LONGEST_SERIES = 128
_SECONDS = 1.0


def learner_for(modality: str, spec: Modality) -> dict[str, Any]:
    """Section of a recipe for a small encoder of this modality.

    Raises:
        UserError: There is no usual encoder for its kind, or its sizes are not known.
    """
    if spec.kind not in _BY_KIND:
        raise UserError(
            f"'{modality}' is of kind {spec.kind}, for which there is no small standard encoder: "
            "write a recipe with a learner for it, and name it with --recipe"
        )
    return {**_BY_KIND[spec.kind](modality, spec), "modality": modality}


def with_views(learner: dict[str, Any]) -> dict[str, Any]:
    """The same section with augmentations of its input, weak and strong, where it names none.

    Args:
        learner: Section of a recipe.
    """
    read = dict(learner.get("input") or {})
    for policy in ("augment", "strong"):
        read[policy] = read.get(policy) or _VIEWS.get(str(read.get("name")), {}).get(policy, [])
    return {**learner, "input": read}


def _vector(modality: str, spec: Modality) -> dict[str, Any]:
    size = _shape(modality, spec, 1)[0]
    return {"name": "mlp", "widths": [WIDTH, WIDTH], "input": {"name": "vector", "dim": size}}


def _series(modality: str, spec: Modality) -> dict[str, Any]:
    length, channels = _shape(modality, spec, 2)
    length = length if length > 0 else _LONGEST_SERIES
    read = {"name": "series", "length": length, "channels": channels}
    return {"name": "cnn1d", "widths": [64, 128, WIDTH], "input": read}


def _image(modality: str, spec: Modality) -> dict[str, Any]:
    size = list(spec.size or (_SMALLEST_PICTURE, _SMALLEST_PICTURE))
    read = {"name": "image", "size": size, "channels": spec.channels or 3}
    return {"name": "convnext", "size": "micro", "patch": 4, "layer_scale": 1.0, "input": read}


def _audio(modality: str, spec: Modality) -> dict[str, Any]:
    rate = spec.sample_rate or 16_000
    read = {
        "name": "log_mel",
        "bands": "channels",
        "seconds": _SECONDS,
        "sample_rate": rate,
        "f_max": min(rate / 2, 8000.0),
        "per_clip": True,
    }
    return {"name": "cnn1d", "widths": [64, 128, WIDTH], "input": read}


def _text(modality: str, spec: Modality) -> dict[str, Any]:
    return {"name": "bert", "size": "tiny", "pool": "mean", "input": {"name": "tokens"}}


def _shape(modality: str, spec: Modality, axes: int) -> tuple[int, ...]:
    if spec.shape is None or len(spec.shape) != axes or spec.shape[-1] < 1:
        raise UserError(
            f"'{modality}' of kind {spec.kind} has the shape {spec.shape} in dataset.json, but "
            f"{axes} axes with a fixed last one are needed: make it again with `outmodal data "
            "index`, or name a recipe with --recipe"
        )
    return spec.shape


_BY_KIND: Mapping[str, Callable[[str, Modality], dict[str, Any]]] = {
    "vector": _vector,
    "series": _series,
    "image": _image,
    "audio": _audio,
    "text": _text,
}

# No mirrors: they make other digits and letters of some.
_VIEWS: Mapping[str, Mapping[str, list[dict[str, Any]]]] = {
    "image": {
        "augment": [{"name": "pad_crop", "pad": 2}],
        "strong": [{"name": "pad_crop", "pad": 2}, {"name": "rand_augment"}, {"name": "erasing"}],
    },
    "log_mel": {
        "augment": [
            {"name": "time_shift"},
            {"name": "noise", "snr": [5.0, 20.0]},
            {"name": "spec_augment", "freq_masks": 1, "time_masks": 1, "time_width": 20},
        ],
        "strong": [
            {"name": "time_shift", "share": 0.2},
            {"name": "noise", "snr": [3.0, 15.0]},
            {"name": "spec_augment", "freq_masks": 2, "time_masks": 2, "time_width": 20},
        ],
    },
    "waveform": {
        "augment": [{"name": "time_shift"}, {"name": "noise", "snr": [5.0, 20.0]}],
        "strong": [{"name": "time_shift", "share": 0.2}, {"name": "noise", "snr": [3.0, 15.0]}],
    },
    "series": {
        "augment": [{"name": "jitter"}, {"name": "scaling"}],
        "strong": [{"name": "jitter", "sigma": 0.1}, {"name": "scaling"}, {"name": "time_mask"}],
    },
    "vector": {
        "augment": [{"name": "feature_noise", "sigma": 0.1}],
        "strong": [{"name": "feature_noise", "sigma": 0.2}, {"name": "feature_dropout"}],
    },
    "tokens": {
        "augment": [{"name": "word_dropout", "rate": 0.2}],
        "strong": [{"name": "word_dropout", "rate": 0.4}],
    },
    "video": {
        "augment": [{"name": "pad_crop", "pad": 2}],
        "strong": [{"name": "pad_crop", "pad": 2}, {"name": "rand_augment"}],
    },
}
