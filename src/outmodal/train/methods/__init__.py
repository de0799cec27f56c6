"""Training systems: one small file each says what is particular about it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from outmodal.train.methods.align import Align, AlignConfig
from outmodal.train.methods.base import Context, Method, Passes, Stage, StepOutput
from outmodal.train.methods.cox import Cox
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.entmin import EntMin, EntMinConfig
from outmodal.train.methods.erm import Erm, ErmConfig
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.untrained import Random, RandomConfig

AnyMethodConfig = CoxConfig | ErmConfig | EntMinConfig | RandomConfig | AlignConfig
MethodConfig = Annotated[AnyMethodConfig, Field(discriminator="name")]
"""Every method's configuration, told apart by `name`."""

AnyMethod = Cox | Erm | EntMin | Random | Align


def build_method(config: AnyMethodConfig, context: Context) -> AnyMethod:
    """Make a method for a run; new weights are drawn from torch's global generator.

    Raises:
        UserError: The configuration does not fit the data set or the learners.
    """
    return config.build(context)


def resolved(config: AnyMethodConfig) -> AnyMethodConfig:
    """The configuration with every key that a preset decides written out."""
    return config.resolved() if isinstance(config, CoxConfig | AlignConfig) else config


__all__ = [
    "Align",
    "AlignConfig",
    "AnyMethod",
    "Context",
    "Cox",
    "CoxConfig",
    "EntMin",
    "EntMinConfig",
    "Erm",
    "ErmConfig",
    "ExportParts",
    "Method",
    "MethodConfig",
    "Passes",
    "Random",
    "RandomConfig",
    "Stage",
    "StepOutput",
    "build_method",
    "resolved",
]
