"""Damage to films: that of pictures, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from outmodal.data.corruptions import pictures, pictures_more
from outmodal.data.manifest import Modality
from outmodal.data.transform import Value


def _framewise(act: pictures.Corruption) -> pictures.Corruption:
    def damaged(
        spec: Modality, value: Value, severity: int, rng: np.random.Generator
    ) -> pictures.Pixels:
        film = np.asarray(value)
        return np.stack([np.asarray(act(spec, frame, severity, rng)) for frame in film])

    return damaged


CORRUPTIONS: Mapping[str, pictures.Corruption] = {
    name: _framewise(act)
    for name, act in {**pictures.CORRUPTIONS, **pictures_more.CORRUPTIONS}.items()
}
