"""Trainable encoders: one registry, one signature. Configurations only, nothing is downloaded."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from outmodal.models.learners.audio import Wav2Vec2Learner
from outmodal.models.learners.base import Learner, LearnerBase, Pool
from outmodal.models.learners.convnets import BitLearner, ConvNextLearner, ResNetLearner
from outmodal.models.learners.plain import Cnn1dLearner, LstmLearner, MlpLearner
from outmodal.models.learners.text import TextLearner
from outmodal.models.learners.vit import ViTLearner

LearnerConfig = Annotated[
    ViTLearner
    | ResNetLearner
    | BitLearner
    | ConvNextLearner
    | Wav2Vec2Learner
    | TextLearner
    | Cnn1dLearner
    | MlpLearner
    | LstmLearner,
    Field(discriminator="name"),
]


def build_learner(config: LearnerBase) -> Learner:
    """Make the learner of a configuration, its weights drawn from torch's global generator."""
    return config.build()


__all__ = [
    "BitLearner",
    "Cnn1dLearner",
    "ConvNextLearner",
    "Learner",
    "LearnerBase",
    "LearnerConfig",
    "LstmLearner",
    "MlpLearner",
    "Pool",
    "ResNetLearner",
    "TextLearner",
    "ViTLearner",
    "Wav2Vec2Learner",
    "build_learner",
]
