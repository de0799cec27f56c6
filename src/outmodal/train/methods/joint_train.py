"""Joint training: all encoders and one classifier of their concatenation, nothing else."""

from __future__ import annotations

from typing import Literal

from outmodal.train.methods.base import Context
from outmodal.train.methods.concat import Concat
from outmodal.train.methods.fusion import FusionConfig


class JointTrainConfig(FusionConfig):
    """Cross-entropy of one linear classifier on all representations side by side."""

    name: Literal["joint_train"] = "joint_train"

    def build(self, context: Context) -> JointTrain:
        """Make the method for a run."""
        return JointTrain(context, self)


class JointTrain(Concat):
    """min mean CE(W [r^1, .., r^M] + b, y)."""
