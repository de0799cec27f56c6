"""Perceptors: frozen encoders of modalities that are already understood."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from outmodal.data.manifest import Dataset
from outmodal.models.perceptors.base import FrozenPerceptor, Perceptor, PerceptorBase
from outmodal.models.perceptors.exported import ExportedPerceptor
from outmodal.models.perceptors.hub import HubPerceptor
from outmodal.models.perceptors.imagebind import ImageBindPerceptor
from outmodal.models.perceptors.languagebind import LanguageBindPerceptor
from outmodal.models.perceptors.noise import noisy, noisy_identity

PerceptorConfig = Annotated[
    ExportedPerceptor | HubPerceptor | ImageBindPerceptor | LanguageBindPerceptor,
    Field(discriminator="name"),
]


def load_perceptor(cfg: PerceptorBase, dataset: Dataset) -> Perceptor:
    """Read a perceptor's weights, for a modality of `dataset`.

    Raises:
        UserError: A folder without weights, a changed file, weights that may not be fetched, or
            a modality that the perceptor does not read.
    """
    found = cfg.load(dataset)
    return noisy(found, cfg.noise_std) if cfg.noise_std else found


def known_identities(cfg: PerceptorBase) -> tuple[str, ...]:
    """What `load_perceptor` may call its perceptor; no weights are loaded. Raises UserError where
    there are none."""
    return tuple(noisy_identity(name, cfg.noise_std) for name in cfg.identities())


__all__ = [
    "ExportedPerceptor",
    "FrozenPerceptor",
    "HubPerceptor",
    "ImageBindPerceptor",
    "LanguageBindPerceptor",
    "Perceptor",
    "PerceptorBase",
    "PerceptorConfig",
    "known_identities",
    "load_perceptor",
]
