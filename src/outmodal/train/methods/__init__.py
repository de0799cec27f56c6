"""Training systems: one small file each says what is particular about it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from outmodal.train.methods.align import Align, AlignConfig
from outmodal.train.methods.aligned import Aligned, AlignedConfig
from outmodal.train.methods.base import Context, Method, Passes, Stage, StepOutput
from outmodal.train.methods.cox import Cox
from outmodal.train.methods.cox_base import CoxBase
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.cox_unsup import CoxUnsupervised
from outmodal.train.methods.diagnose_relearn import DiagnoseRelearn, DiagnoseRelearnConfig
from outmodal.train.methods.entmin import EntMin, EntMinConfig
from outmodal.train.methods.erm import Erm, ErmConfig
from outmodal.train.methods.freematch import FreeMatch, FreeMatchConfig
from outmodal.train.methods.infobridge import InfoBridge
from outmodal.train.methods.infobridge_config import InfoBridgeConfig
from outmodal.train.methods.infonce import InfoNce, InfoNceConfig
from outmodal.train.methods.joint_train import JointTrain, JointTrainConfig
from outmodal.train.methods.missing_detection import MissingDetection, MissingDetectionConfig
from outmodal.train.methods.mixtext import MixText, MixTextConfig
from outmodal.train.methods.mmpareto import MmPareto, MmParetoConfig
from outmodal.train.methods.moco import Moco, MocoConfig
from outmodal.train.methods.moco_cox import MocoCox, MocoCoxConfig, MocoCoxUnsupervised
from outmodal.train.methods.multi_task import MultiTask, MultiTaskConfig
from outmodal.train.methods.naive import Naive, NaiveConfig
from outmodal.train.methods.ogm_ge import OgmGe, OgmGeConfig
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.pmr import Pmr, PmrConfig
from outmodal.train.methods.reconboost import ReconBoost, ReconBoostConfig
from outmodal.train.methods.settings import MethodSettings
from outmodal.train.methods.ssl import Ssl, SslConfig
from outmodal.train.methods.synergy import Synergy
from outmodal.train.methods.synergy_config import SynergyConfig
from outmodal.train.methods.ume_mma import UmeMma, UmeMmaConfig
from outmodal.train.methods.unimodal import Unimodal, UnimodalConfig
from outmodal.train.methods.untrained import Random, RandomConfig

AnyMethodConfig = (
    CoxConfig
    | ErmConfig
    | EntMinConfig
    | RandomConfig
    | SslConfig
    | MocoConfig
    | MocoCoxConfig
    | FreeMatchConfig
    | MixTextConfig
    | AlignedConfig
    | AlignConfig
    | SynergyConfig
    | UmeMmaConfig
    | NaiveConfig
    | MultiTaskConfig
    | MissingDetectionConfig
    | InfoBridgeConfig
    | UnimodalConfig
    | JointTrainConfig
    | InfoNceConfig
    | OgmGeConfig
    | PmrConfig
    | MmParetoConfig
    | DiagnoseRelearnConfig
    | ReconBoostConfig
)
MethodConfig = Annotated[AnyMethodConfig, Field(discriminator="name")]
"""Every method's configuration, told apart by `name`."""


def build_method(config: MethodSettings, context: Context) -> Method:
    """Make a method for a run; new weights are drawn from torch's global generator.

    Raises:
        UserError: The configuration does not fit the data set or the learners.
    """
    return config.build(context)


__all__ = [
    "Align",
    "AlignConfig",
    "Aligned",
    "AlignedConfig",
    "AnyMethodConfig",
    "Context",
    "Cox",
    "CoxBase",
    "CoxConfig",
    "CoxUnsupervised",
    "DiagnoseRelearn",
    "DiagnoseRelearnConfig",
    "EntMin",
    "EntMinConfig",
    "Erm",
    "ErmConfig",
    "ExportParts",
    "FreeMatch",
    "FreeMatchConfig",
    "InfoBridge",
    "InfoBridgeConfig",
    "InfoNce",
    "InfoNceConfig",
    "JointTrain",
    "JointTrainConfig",
    "Method",
    "MethodConfig",
    "MethodSettings",
    "MissingDetection",
    "MissingDetectionConfig",
    "MixText",
    "MixTextConfig",
    "MmPareto",
    "MmParetoConfig",
    "Moco",
    "MocoConfig",
    "MocoCox",
    "MocoCoxConfig",
    "MocoCoxUnsupervised",
    "MultiTask",
    "MultiTaskConfig",
    "Naive",
    "NaiveConfig",
    "OgmGe",
    "OgmGeConfig",
    "Passes",
    "Pmr",
    "PmrConfig",
    "Random",
    "RandomConfig",
    "ReconBoost",
    "ReconBoostConfig",
    "Ssl",
    "SslConfig",
    "Stage",
    "StepOutput",
    "Synergy",
    "SynergyConfig",
    "UmeMma",
    "UmeMmaConfig",
    "Unimodal",
    "UnimodalConfig",
    "build_method",
]
