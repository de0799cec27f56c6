"""ImageBind as a perceptor: one tower of `imagebind_huge.pth`, and the input that it was fed."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from outmodal.data.manifest import Dataset, Modality
from outmodal.data.perceptor_inputs import perceptor_input
from outmodal.errors import UserError
from outmodal.models.perceptors.base import FrozenPerceptor, PerceptorBase
from outmodal.models.perceptors.checkpoint import Checkpoint, compare, fill
from outmodal.models.perceptors.imagebind_towers import (
    ImageBindSettings,
    ImageBindSizes,
    ImageBindTower,
    checkpoint_key,
)
from outmodal.models.perceptors.weights import Home, find_weights

log = logging.getLogger(__name__)

SIZES = "imagebind.json"
"""File beside the weights with ImageBindSettings, for an ImageBind of other sizes than huge."""

HOME = Home(
    what="ImageBind",
    files="imagebind_huge.pth (4.8 GB)",
    page="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
    licence="CC BY-NC-SA 4.0, in the README CC BY-NC 4.0: non-commercial use only",
    patterns=("imagebind_huge.pth", "model*.safetensors", "pytorch_model*.bin"),
)

READS: dict[str, dict[str, str]] = {
    "image": {"vision": "image", "depth": "depth", "thermal": "thermal"},
    "video": {"vision": "video"},
    "audio": {"audio": "audio"},
    "text": {"text": "text"},
    "series": {"imu": "imu"},
}
"""Kind of a data set's modality -> towers that read it -> their input. "auto" is the first."""


class ImageBindPerceptor(PerceptorBase):
    """A tower of ImageBind as a frozen encoder.

    Attributes:
        modality: The data set's modality to encode.
        path: imagebind_huge.pth or the same tensors as safetensors, a folder with either, or the
            hub id of such a folder.
        tower: Which tower reads it. "auto" follows the modality's kind: vision for image and
            video, audio, text, and imu for series; depth and thermal pictures must be named.
        allow_download: Whether the files of a hub id may be fetched.
        input: Settings of the tower's input to change, such as the focal length of depth maps.
    """

    name: Literal["imagebind"] = "imagebind"
    modality: str
    path: str
    tower: Literal["auto", "vision", "text", "audio", "depth", "thermal", "imu"] = "auto"
    allow_download: bool = False
    input: dict[str, Any] = Field(default_factory=dict)

    def load(self, dataset: Dataset) -> FrozenPerceptor:
        tower, kind = _choose(self.tower, self.modality, dataset.modality(self.modality))
        transform = perceptor_input("imagebind", kind, **self.input).build(
            dataset, self.modality, None
        )
        checkpoint = Checkpoint(find_weights(self.path, HOME, self.allow_download))
        settings = read_settings(checkpoint.files[0].parent)
        _check_shape(transform.shape, _sizes(settings, tower, checkpoint), tower)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        module = load_tower(checkpoint, settings, tower, dtype)
        identity = _identity(tower, checkpoint)
        return FrozenPerceptor(
            self.modality,
            identity,
            transform,
            module,
            self.precision,
            dim=settings.dim,
            compiled=self.compile,
        )

    def identities(self) -> tuple[str, ...]:
        checkpoint = Checkpoint(find_weights(self.path, HOME, self.allow_download))
        every = [tower for towers in READS.values() for tower in towers]
        chosen = dict.fromkeys(every) if self.tower == "auto" else [self.tower]
        return tuple(_identity(tower, checkpoint) for tower in chosen)

    def for_text(self, modality: str) -> ImageBindPerceptor:
        return self.model_copy(update={"modality": modality, "tower": "text", "input": {}})


def _identity(tower: str, checkpoint: Checkpoint) -> str:
    return f"imagebind:{tower}@{checkpoint.digest}"


def _choose(tower: str, modality: str, spec: Modality) -> tuple[str, str]:
    """Return (tower, kind of its input) for a modality, or raise UserError."""
    towers = READS.get(spec.kind, {})
    if not towers:
        raise UserError(
            f"ImageBind reads {', '.join(READS)}, and modality '{modality}' is {spec.kind}: "
            "choose another modality"
        )
    chosen = next(iter(towers)) if tower == "auto" else tower
    if chosen not in towers:
        raise UserError(
            f"ImageBind's tower '{tower}' does not read {spec.kind}, which modality '{modality}' "
            f"is: set tower to {' or '.join(towers)}"
        )
    return chosen, towers[chosen]


def _sizes(settings: ImageBindSettings, tower: str, checkpoint: Checkpoint) -> ImageBindSizes:
    if tower not in settings.towers:
        raise UserError(
            f"{SIZES} beside {checkpoint.label} has no tower '{tower}', but "
            f"{', '.join(settings.towers)}: choose a modality for one of them"
        )
    return settings.towers[tower]


def _check_shape(got: tuple[int, ...], sizes: ImageBindSizes, tower: str) -> None:
    """Refuse input settings that the tower's positions are not made for."""
    fits = {sizes.input}
    if len(sizes.input) == 4:
        fits.add((sizes.input[0], *sizes.input[2:]))
    clip = got[1:] if len(got) > 3 else got
    if clip not in fits:
        raise UserError(
            f"ImageBind's tower '{tower}' reads inputs of shape {list(sizes.input)}, and the "
            f"perceptor's input settings give {list(clip)}: leave size, channels and frames alone"
        )


def read_settings(folder: Path) -> ImageBindSettings:
    """Return the sizes that lie beside the weights; those of ImageBind huge if none do."""
    path = folder / SIZES
    if not path.is_file():
        return ImageBindSettings()
    try:
        return ImageBindSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {field}: {first['msg']}; correct it") from None


def load_tower(
    checkpoint: Checkpoint, settings: ImageBindSettings, tower: str, dtype: torch.dtype
) -> ImageBindTower:
    """Read one tower. The checkpoint must hold all of them, and nothing else.

    Raises:
        UserError: Keys or shapes are not those of `settings`, or `settings` lack the tower.
    """
    sizes = _sizes(settings, tower, checkpoint)
    what = f"ImageBind ({', '.join(settings.towers)})"
    compare(checkpoint.shapes, expected_shapes(settings), checkpoint.label, what)
    with torch.device("meta"):
        module = ImageBindTower(sizes, settings.dim)
    fill(module, checkpoint, {n: checkpoint_key(tower, n) for n in module.state_dict()}, dtype)
    log.info(
        "%s: sha256 %s..., %d keys, all used or of other towers; tower %s, upstream's scale %g",
        checkpoint.label,
        checkpoint.digest,
        len(checkpoint.shapes),
        tower,
        module.scale(),
    )
    return module.eval()


@cache
def _shapes(tower: str, sizes: ImageBindSizes, dim: int) -> dict[str, torch.Size]:
    """Checkpoint key -> shape of one tower."""
    with torch.device("meta"):
        state = ImageBindTower(sizes, dim).state_dict()
    return {checkpoint_key(tower, name): tensor.shape for name, tensor in state.items()}


def expected_shapes(settings: ImageBindSettings) -> dict[str, torch.Size]:
    """Key -> shape of the checkpoint of a whole ImageBind; nothing of that size is allocated."""
    towers = (_shapes(t, sizes, settings.dim) for t, sizes in settings.towers.items())
    return {key: shape for tower in towers for key, shape in tower.items()}
