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
    return cfg.load(dataset)


__all__ = [
    "ExportedPerceptor",
    "FrozenPerceptor",
    "HubPerceptor",
    "ImageBindPerceptor",
    "LanguageBindPerceptor",
    "Perceptor",
    "PerceptorBase",
    "PerceptorConfig",
    "load_perceptor",
]
