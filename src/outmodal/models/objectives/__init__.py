"""Objectives, one file each: losses of embeddings, and for those that align modalities a scorer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from outmodal.models.objectives.base import Objective, ObjectiveOutput, ObjectiveSettings
from outmodal.models.objectives.clip import Clip, ClipConfig
from outmodal.models.objectives.clip_ib import ClipIb, ClipIbConfig
from outmodal.models.objectives.gram import Gram, GramConfig
from outmodal.models.objectives.ova_ib import OvaIb, OvaIbConfig
from outmodal.models.objectives.siglip import SigLip, SigLipConfig
from outmodal.models.objectives.symile import Symile, SymileConfig
from outmodal.models.objectives.triangle import Triangle, TriangleConfig

AnyObjectiveConfig = (
    ClipConfig
    | ClipIbConfig
    | SigLipConfig
    | SymileConfig
    | GramConfig
    | TriangleConfig
    | OvaIbConfig
)
ObjectiveConfig = Annotated[AnyObjectiveConfig, Field(discriminator="name")]
"""Every alignment objective's configuration, told apart by `name`."""

__all__ = [
    "AnyObjectiveConfig",
    "Clip",
    "ClipConfig",
    "ClipIb",
    "ClipIbConfig",
    "Gram",
    "GramConfig",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "OvaIb",
    "OvaIbConfig",
    "SigLip",
    "SigLipConfig",
    "Symile",
    "SymileConfig",
    "Triangle",
    "TriangleConfig",
]
