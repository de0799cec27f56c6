"""Keys and draws shared by the methods that learn one modality from few labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from outmodal.data.batch import StreamSpec
from outmodal.data.mixing import Mixing, MixingConfig
from outmodal.errors import UserError, nearest
from outmodal.models.features import FeatureNorm
from outmodal.models.learners import Learner
from outmodal.train.methods.base import Context
from outmodal.train.methods.settings import MethodSettings
from outmodal.train.selection import labelled_draw

LabelDraw = Literal["balanced", "uniform"]


class LabelledConfig(MethodSettings):
    """Keys of every method that learns one modality from few labels.

    Attributes:
        unknown: The modality to learn (out of modal: no perceptor knows it).
        label_fraction: Share of the training split whose labels may be used.
        dim: Size of the feature z; None is that of the known features (the data set's largest
            vector modality), or the learner's own where the data set has none.
    """

    unknown: str
    label_fraction: float = Field(default=0.1, gt=0.0, le=1.0)
    dim: int | None = Field(default=None, ge=1)


class BaselineConfig(LabelledConfig):
    """Keys of the baselines, whose learner must equal that of COX to be comparable.

    Attributes:
        feat_norm: Scale of z, see `outmodal.models.features`.
        label_draw: "balanced" over classes, or "uniform" over samples.
    """

    feat_norm: FeatureNorm = "l2_sqrtd"
    label_draw: LabelDraw = "balanced"


class Supervision:
    """Which training samples show their label: the same for every method with the same seed.

    Attributes:
        labelled, unlabelled: Sorted indices within the training split; together all of it. Nothing
            is labelled where the fraction is 0.
    """

    def __init__(self, context: Context, fraction: float, draw: LabelDraw) -> None:
        self.labels = context.labels[context.train_split]
        self.labelled: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        if fraction > 0:
            self.labelled = labelled_draw(
                self.labels, fraction, context.seed, context.classes, balanced=draw == "balanced"
            )
        hidden = np.ones(len(self.labels), dtype=bool)
        hidden[self.labelled] = False
        self.unlabelled: NDArray[np.int64] = np.flatnonzero(hidden)


def check_classes(context: Context) -> None:
    """Raise UserError where there is nothing to tell apart."""
    if len(context.classes) < 2:
        named = f" ('{context.classes[0]}')" if context.classes else ""
        raise UserError(
            f"the data set has {len(context.classes)} class{named}, and a classifier needs two at "
            "least: add samples of another class, or name the classes in its manifest"
        )


def stream(
    context: Context,
    name: str,
    modalities: tuple[str, ...],
    select: NDArray[np.int64] | None = None,
) -> StreamSpec:
    """A stream over the training split with the run's global batch."""
    return StreamSpec(name, context.train_split, modalities, context.batch, select)


def mixed_stream(spec: StreamSpec, mixing: MixingConfig | None, *names: str) -> StreamSpec:
    """The stream with `names` of its neighbouring samples blended, where `mixing` is given."""
    return spec if mixing is None else replace(spec, mixing=Mixing(mixing, names))


def find_learner(context: Context, modality: str, key: str) -> Learner:
    """The run's learner for a modality.

    Raises:
        UserError: There is none.
    """
    if modality not in context.learners:
        raise UserError(
            f"{key} is '{modality}' but no learner encodes it{nearest(modality, context.learners)}"
        )
    return context.learners[modality]


def feature_size(
    context: Context, dim: int | None, known: tuple[str, ...], learner: Learner
) -> int:
    """Size d_O of the feature z: the configured one, else that of the known features."""
    if dim is not None:
        return dim
    sizes = [context.dims[m] for m in known or tuple(context.dims)]
    return max(sizes, default=learner.dim)
