"""What a trained method hands to the exporter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from outmodal.models.features import FeatureNorm
from outmodal.models.heads import ProjectionHead
from outmodal.models.learners import Learner


@dataclass(frozen=True)
class ExportParts:
    """The modules behind one modality's encoder.

    Attributes:
        learner: x -> r.
        head: r -> e; None where the representation is the embedding.
        classifier: normalised e -> logits, where the method trains one.
        feature_norm: How e is normalised before the classifier (and, as unit vectors up to
            scale, wherever it is compared).
    """

    learner: Learner
    head: ProjectionHead | None
    classifier: nn.Linear | None
    feature_norm: FeatureNorm
