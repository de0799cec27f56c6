"""Training systems: one small file each says what is particular about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor

from outmodal.train.methods.align import Align, AlignConfig
from outmodal.train.methods.base import Context, Method, Passes, Stage, StepOutput
from outmodal.train.methods.cox import Cox
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.entmin import EntMin, EntMinConfig
from outmodal.train.methods.erm import Erm, ErmConfig
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.synergy import Synergy
from outmodal.train.methods.synergy_config import SynergyConfig
from outmodal.train.methods.untrained import Random, RandomConfig

AnyMethodConfig = CoxConfig | ErmConfig | EntMinConfig | RandomConfig | AlignConfig | SynergyConfig
MethodConfig = Annotated[AnyMethodConfig, Field(discriminator="name")]
"""Every method's configuration, told apart by `name`."""

AnyMethod = Cox | Erm | EntMin | Random | Align | Synergy


def build_method(config: AnyMethodConfig, context: Context) -> AnyMethod:
    """Make a method for a run; new weights are drawn from torch's global generator.

    Raises:
        UserError: The configuration does not fit the data set or the learners.
    """
    return config.build(context)


def resolved(config: AnyMethodConfig) -> AnyMethodConfig:
    """The configuration with every key that a preset decides written out."""
    return (
        config.resolved() if isinstance(config, CoxConfig | AlignConfig | SynergyConfig) else config
    )


def restored(config: AnyMethodConfig, state: Mapping[str, Tensor]) -> AnyMethodConfig:
    """The configuration of a run as a checkpoint's method state allows to build it: without what
    only training needs."""
    return config.restored(state) if isinstance(config, SynergyConfig) else config


def imagined(config: AnyMethodConfig, classes: int) -> AnyMethodConfig:
    """The configuration as an estimate can build it, without encoders that only training needs."""
    return config.imagined(classes) if isinstance(config, SynergyConfig) else config


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
    "Synergy",
    "SynergyConfig",
    "build_method",
    "imagined",
    "resolved",
    "restored",
]
