"""The keys of alignment, and which modalities a run aligns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from outmodal.errors import UserError, nearest
from outmodal.models.features import FeatureNorm
from outmodal.models.heads import HeadConfig
from outmodal.models.objectives import ClipConfig, ObjectiveConfig
from outmodal.train.gather import ExchangeKind
from outmodal.train.methods.base import Context
from outmodal.train.methods.fusion_checks import read_modalities
from outmodal.train.methods.settings import MethodSettings

if TYPE_CHECKING:
    from outmodal.train.methods.align import Align


class AlignConfig(MethodSettings):
    """Contrastive alignment of paired modalities.

    A modality is encoded by its learner. One without a learner that is a vector in the data set,
    as perceptors' features are, gets a head only.

    Attributes:
        modalities: What to align, two or more; () is what the run's learners encode, or in a run
            without learners every vector modality of the data set.
        head: Projection of each modality into the shared space.
        headless: Vector modalities that are the shared space as they are, without a head; each
            must have `head.dim` entries.
        vector_norm: Scale of vector modalities before their heads: none, l2 or l2_sqrtd.
        objective: What pulls the embeddings together, and scores them in evaluation.
        exchange: How the rows of several processes meet: gather, ring (memory that does not grow
            with their number), or auto, gather while it fits.
        similarity: Precision of the vectors that are compared (sums are always fp32): fp32, bf16,
            or auto, bf16 on a GPU where `engine.precision` is bf16.
        prototypes: Whether evaluation also classifies each modality by the class means of each
            other one on the training split.
    """

    name: Literal["align"] = "align"
    modalities: tuple[str, ...] = ()
    head: HeadConfig = HeadConfig()
    headless: tuple[str, ...] = ()
    vector_norm: FeatureNorm = "none"
    objective: ObjectiveConfig = ClipConfig()
    exchange: ExchangeKind = "auto"
    similarity: Literal["auto", "fp32", "bf16"] = "auto"
    prototypes: bool = True

    def resolved(self) -> AlignConfig:
        """The same configuration with every key that a preset decides written out."""
        return self.model_copy(update={"objective": self.objective.resolved()})

    def build(self, context: Context) -> Align:
        """Make the method for a run."""
        from outmodal.train.methods.align import Align

        return Align(context, self)


def aligned_modalities(context: Context, config: AlignConfig) -> tuple[str, ...]:
    """What a run aligns, in order.

    Raises:
        UserError: Fewer than two; one that is neither learned nor a vector; a headless one that
            does not fit.
    """
    names = read_modalities(context, config.modalities)
    if len(set(names)) < 2:
        raise UserError(
            f"method align needs two or more modalities, got {', '.join(names) or '-'}: add "
            "entries to `learners`, or name more, vectors of the data set too, in "
            "method.modalities"
        )
    for m in config.headless:
        _check_headless(context, config, names, m)
    return names


def _check_headless(
    context: Context, config: AlignConfig, names: tuple[str, ...], modality: str
) -> None:
    vectors = [m for m in names if m not in context.learners]
    if modality not in vectors:
        raise UserError(
            f"method.headless has '{modality}', which is no vector modality that is aligned"
            f"{nearest(modality, vectors)}"
        )
    if context.dims[modality] != config.head.dim:
        raise UserError(
            f"method.headless: '{modality}' has {context.dims[modality]} entries, the shared space "
            f"{config.head.dim}: set method.head.dim to {context.dims[modality]}, or leave "
            f"'{modality}' out of method.headless"
        )
