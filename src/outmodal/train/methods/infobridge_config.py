"""The keys of InfoBridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from outmodal.models.critic import CriticKind
from outmodal.train.methods.base import Context
from outmodal.train.methods.fusion import FusionConfig

if TYPE_CHECKING:
    from outmodal.train.methods.infobridge import InfoBridge

ContextKind = Literal["semantic", "cluster", "retrieval", "const"]
Negatives = Literal["same_T", "any_T"]


class InfoBridgeConfig(FusionConfig):
    """Joint training with a bound on the modalities' conditional mutual information.

    Attributes:
        alpha: Weight of the objective of the critic in the loss of encoders and classifier.
        critic: mlp, a perceptron on both projections, their product and an embedding of T; or
            bilinear, a scaled cosine that T turns.
        context: T, in training only: the class (semantic); k-means groups of the representations,
            made again before each epoch (cluster); levels of the two projections' cosine within
            the batch (retrieval); or the same for all samples (const).
        clusters: k of cluster.
        levels: Levels of retrieval, cut at the quantiles of the batch.
        neg: Whether negatives share T with the sample (same_T), or come from the whole buffer
            (any_T).
        n0, n1: Negatives of each pair and their weight n0 / n1; the margin is log(n1 / n0), so
            that n0 = n1 = 1 is the method without margin.
        buffer: Samples, with their representations, that negatives are drawn from.
        update: One step for all (joint), or in turns on one batch each, the critic first
            (alternate): an epoch then has two passes over the data.
    """

    name: Literal["infobridge"] = "infobridge"
    alpha: float = Field(default=0.1, ge=0)
    critic: CriticKind = "mlp"
    context: ContextKind = "semantic"
    clusters: int = Field(default=5, ge=1)
    levels: int = Field(default=3, ge=1)
    neg: Negatives = "same_T"
    n0: int = Field(default=5, ge=1)
    n1: int = Field(default=1, ge=1)
    buffer: int = Field(default=1024, ge=2)
    update: Literal["joint", "alternate"] = "joint"

    def contexts(self, classes: int) -> int:
        """How many values T has."""
        counts = {"semantic": classes, "cluster": self.clusters, "retrieval": self.levels}
        return counts.get(self.context, 1)

    def build(self, context: Context) -> InfoBridge:
        """Make the method for a run."""
        from outmodal.train.methods.infobridge import InfoBridge

        return InfoBridge(context, self)
