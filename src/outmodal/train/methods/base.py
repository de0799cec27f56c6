"""What every method is: trainable parts, stages, the streams a step needs, and one forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.learners import Learner
from outmodal.train.methods.parts import ExportParts


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one loss composition.

    Attributes:
        name: Its name.
        epochs: Its length.
        lr_scale: Factor on the learning rate of all groups.
        anew: Whether the schedule and its warm-up begin again with this stage. They last until
            the next stage that begins anew, or the end of the run.
    """

    name: str
    epochs: int
    lr_scale: float = 1.0
    anew: bool = False


def scheduled(stages: Sequence[Stage], epoch: int) -> tuple[int, int]:
    """First epoch, and the one after the last, of the schedule that an epoch is in.

    >>> stages = [Stage("a", 3), Stage("b", 1), Stage("c", 2, anew=True)]
    >>> scheduled(stages, 0), scheduled(stages, 3), scheduled(stages, 4)
    ((0, 4), (0, 4), (4, 6))
    """
    begin = end = 0
    for stage in stages:
        if stage.anew and end > epoch:
            break
        if stage.anew:
            begin = end
        end += stage.epochs
    return begin, end


@dataclass(frozen=True)
class StepOutput:
    """Result of one step.

    Attributes:
        loss: Scalar to differentiate. Its gradient, averaged over ranks, is the gradient of
            the objective on the global batch.
        logs: Scalars worth a line in metrics.jsonl, already global.
    """

    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """All that a method may know about its run when it is built.

    Attributes:
        seed: Run seed.
        batch: Global batch per stream and step.
        classes: Class names in label order.
        labels: split -> [N] int64 labels in index order, -1 where absent.
        dims: modality -> feature size, for modalities that are vectors in the data set.
        learners: modality -> trainable encoder.
        train_split, eval_split: Names of the splits.
        epochs: Total epochs of the run.
        inputs: modality -> the transform that gives its inputs, for what stands for a missing one.
        splits: Names of all splits of the data set.
    """

    seed: int
    batch: int
    classes: tuple[str, ...]
    labels: Mapping[str, NDArray[np.int64]]
    dims: Mapping[str, int]
    learners: Mapping[str, Learner]
    train_split: str
    eval_split: str
    epochs: int
    inputs: Mapping[str, Transform] = field(default_factory=dict)
    splits: tuple[str, ...] = ()


class Passes(Protocol):
    """Full passes over the data that the engine runs for a method between epochs."""

    def infer(self, what: str, spec: StreamSpec) -> dict[str, Tensor]:
        """Run `Method.infer(what, batch)` once over every sample of `spec` (its `batch` is the
        global batch of the pass) in eval mode without gradients.

        Returns full tensors on the CPU, equal on every rank, rows in the order of `spec.select`
        (or of the split), every sample exactly once.
        """
        ...

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """Return full fp32 CPU copies of a submodule's parameters, whatever the sharding."""
        ...

    def set_weights(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Overwrite a submodule's parameters by what `weights` names; equal on all ranks."""
        ...


class Method(nn.Module, ABC):
    """One training system. The engine calls `forward` through its wrapper, once per step.

    Everything that decides what is trained lives here; the engine knows no modality.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Ordered stages; their epochs add up to the run's epochs."""

    @abstractmethod
    def streams(self, stage: str) -> Sequence[StreamSpec]:
        """Streams whose batches a step of this stage receives. Empty selections are allowed:
        such a stream's batch is missing from the step's dictionary."""

    @abstractmethod
    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        """Loss of one step. `step` is the global step, for counter-based noise."""

    @abstractmethod
    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Per-row outputs of a full pass; "logits" and "embedding:MODALITY" are the usual
        values of `what`."""

    def steps_per_epoch(self) -> int:
        """Steps in an epoch: one pass over the training split unless a method says otherwise.

        Raises:
            UserError: The split has less than one batch.
        """
        split, batch = self.context.train_split, self.context.batch
        count = len(self.context.labels[split])
        if count < batch:
            raise UserError(
                f"data.batch={batch} is more than the {count} samples of split '{split}', so an "
                f"epoch has no step: set data.batch to {max(1, count)} or less, or use a larger "
                "data set"
            )
        return count // batch

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Refresh sets or targets; return scalars to log."""
        return {}

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """Metrics on the evaluation split, in 0..1 where they are rates."""
        return {}

    def diagnose(self, passes: Passes) -> dict[str, float]:
        """What an evaluation may cheaply say of features beside its metrics: "mmd/A-B" and
        "modality_gap/A-B" of modalities in one space (see `discrepancy`); {} where there are not
        two."""
        return {}

    def export_parts(self, modality: str | None) -> ExportParts:
        """The modules behind one modality's encoder, for `outmodal export`.

        Args:
            modality: Which; None where there is only one.

        Raises:
            UserError: There is no such encoder, or none is named and there are several.
        """
        raise UserError(
            f"a run of {type(self).__name__} cannot be exported: its method has no export_parts"
        )

    def suspects(self) -> str:
        """What made the last step's gradient not finite, as a clause for a message; "" where the
        method cannot tell. Collective."""
        return ""

    def edit_gradients(self, gradients: dict[str, Tensor], stage: str, step: int) -> None:
        """Change the gradient of a step before it is clipped: replace entries, or write to them.

        A method that overrides this cannot be trained with ZeRO stages above 1 (see
        `outmodal.train.gradients`). Collective; every rank must make the same of it.

        Args:
            gradients: Parameter name -> whole gradient, reduced over ranks and micro-batches, of
                what the step moves.
            stage: Name of the stage.
            step: Optimizer step.
        """

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: {"name", "params", optional "lr_scale", "weight_decay"}."""
        return [{"name": "all", "params": [p for p in self.parameters() if p.requires_grad]}]

    def method_state(self) -> dict[str, Tensor]:
        """Tensors beyond parameters and buffers that a resumed run needs (sets, queues, EMAs)."""
        return {}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `method_state` returned."""


class WholeBatchMethod(Method):
    """A method whose objective compares all rows of the global batch with each other.

    Its step has two halves, so that the engine may take the first in pieces
    (`engine.micro_batch`) and still give the gradient of the whole: a row-wise `encode`, which
    holds nearly all of the memory, and an `objective` on small representations.
    """

    @abstractmethod
    def encode(self, batches: Mapping[str, Batch], stage: str, step: int) -> dict[str, Tensor]:
        """Representations [n, ...] of this rank's rows, by any names.

        Row by row: a row's result must not depend on the other rows (no batch statistics, no
        collectives), and nothing may be kept from one call to the next, as the engine calls this
        twice for each piece. Noise from torch's generators is replayed. Where the engine takes
        pieces, a stream that has no rows left is missing from `batches`.
        """

    @abstractmethod
    def objective(
        self, encoded: Mapping[str, Tensor], batches: Mapping[str, Batch], stage: str, step: int
    ) -> StepOutput:
        """Loss of one step from the representations of all of this rank's rows.

        Args:
            encoded: What `encode` gave, for all rows.
            batches: The step's batches without their inputs (`x` is empty).
            stage: Name of the stage.
            step: Global step.
        """

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        encoded = self.encode(batches, stage, step)
        rest = {name: replace(batch, x={}) for name, batch in batches.items()}
        return self.objective(encoded, rest, stage, step)
