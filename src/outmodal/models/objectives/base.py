"""What every alignment objective is: a loss over a batch's embeddings, and a scorer for retrieval.

An objective sees unit vectors e^m [n, d] of M modalities, row n of each being sample n, and a mask
of which samples have which modality. It knows nothing of ranks: the exchange brings it the rows of
others, and its loss is such that the mean of gradients over ranks is the gradient of the objective
on the global batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.base import Config
from outmodal.errors import UserError
from outmodal.models.kernels.checks import check_mask, check_shapes, check_units
from outmodal.models.kernels.dispatch import Impl
from outmodal.models.kernels.exchange import LOCAL, Exchange
from outmodal.models.objectives.scale import Scale

CHECK_EVERY = 1000  # steps between checks of the embeddings' values, which wait for the device


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of one batch.

    Attributes:
        loss: Scalar to differentiate, of this rank; fp32 (fp64 for fp64 embeddings). A term for
            which no sample has the modalities is zero, attached to the graph.
        logs: Scalars whose mean over ranks is their value on the global batch; detached.
    """

    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedded:
    """A batch as objectives see it.

    Attributes:
        names: The M modalities in their fixed order.
        units: M tensors [n, d] of unit vectors; zeros in rows without the modality.
        held: [n, M] bool, which sample has which modality.
        exchange: How rows of other ranks are met.
        step: Number of the step, equal on all ranks: the seed of whatever is drawn.
        raw: M tensors [n, d], the embeddings before normalisation, zeros alike; None where not
            given.
    """

    names: tuple[str, ...]
    units: list[Tensor]
    held: Tensor
    exchange: Exchange
    step: int
    raw: list[Tensor] | None = None

    @property
    def complete(self) -> Tensor:
        """[n] bool, samples that have all modalities."""
        return self.held.all(dim=1)

    @property
    def anchors(self) -> Tensor:
        """[n, M] bool, modalities of a sample that have at least one other to face."""
        return self.held & (self.held.sum(dim=1, keepdim=True) >= 2)

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean of [n] values over the global batch, as a loss of this rank.

        `weights` [n] is >= 0 (or bool); rows of weight 0 contribute neither value nor gradient.
        """
        weights = weights.to(values.dtype)
        total = self.exchange.sum(weights.sum())
        mine = torch.where(weights > 0, values * weights, torch.zeros_like(values)).sum()
        return mine * torch.where(total > 0, self.exchange.size / total, torch.zeros_like(total))


class ObjectiveSettings(Config):
    """Keys that all objectives share.

    Attributes:
        temperature: Temperature at the start; similarities are divided by it.
        learn_temperature: Whether it is learned.
        largest_scale: Bound on the learned inverse temperature.
        impl: Which implementation of the kernels runs; auto is Triton on CUDA, else tiled.
    """

    temperature: float = Field(default=0.07, gt=0.0)
    learn_temperature: bool = True
    largest_scale: float = Field(default=100.0, gt=0.0)
    impl: Impl = "auto"

    def build(self, modalities: Sequence[str], dim: int) -> Objective:
        """Make the objective for embeddings of `dim` entries.

        Raises:
            UserError: It is not defined for so few or so many modalities.
        """
        raise NotImplementedError

    def resolved(self) -> ObjectiveSettings:
        """The same keys with none left to a preset."""
        return self


class Objective(nn.Module, ABC):
    """A loss over unit embeddings of `modalities`, and the score it implies for retrieval.

    Attributes:
        modalities: Their names, in order.
        scale: The inverse temperature.
        fewest, most: How many modalities it is defined for; None is no bound.
        needs_raw: Whether it wants embeddings before normalisation too.
        together: Whether only samples that have all modalities count.
    """

    fewest: int = 2
    most: int | None = None
    needs_raw: bool = False
    together: bool = False

    def __init__(self, modalities: Sequence[str], settings: ObjectiveSettings) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self._count_modalities()
        self.impl: Impl = settings.impl
        self.scale = Scale(settings.temperature, settings.learn_temperature, settings.largest_scale)

    def _count_modalities(self) -> None:
        name, count = type(self).__name__, len(set(self.modalities))
        given = f"got {count}: {', '.join(self.modalities) or '-'}"
        if count < len(self.modalities):
            raise UserError(
                f"objective {name} names a modality twice: {', '.join(self.modalities)}"
            )
        if self.fewest == self.most != count:
            raise UserError(
                f"objective {name} is defined for {self.fewest} modalities only, {given}: name "
                f"{self.fewest} in method.modalities, or choose another objective"
            )
        if count < self.fewest:
            raise UserError(
                f"objective {name} aligns two or more modalities, {given}: add learners, or name "
                "others in method.modalities"
            )
        if self.most is not None and count > self.most:
            raise UserError(
                f"objective {name} is defined for at most {self.most} modalities, {given}: name "
                "fewer in method.modalities, or choose a pairwise objective"
            )

    def forward(
        self,
        units: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        exchange: Exchange = LOCAL,
        step: int = 0,
        raw: Mapping[str, Tensor] | None = None,
    ) -> ObjectiveOutput:
        """Loss of this rank's rows against those of all ranks.

        Args:
            units: modality -> [n, d] unit vectors.
            present: modality -> [n] bool; None: every sample has every modality.
            exchange: How rows of other ranks are met.
            step: Number of the step, equal on all ranks. Values are checked where it is a
                multiple of 1000, shapes always.
            raw: modality -> [n, d] embeddings before normalisation, for what is measured there.

        Raises:
            UserError: A modality is missing, has another number of rows or dimensions, or (in a
                checked step) holds NaN or vectors of another length than 1; names it. Values of
                one rank are refused on all of them.
        """
        batch = self._gathered(units, present, exchange, step, raw)
        with torch.autocast(batch.held.device.type, enabled=False):
            return self.evaluate_batch(batch)

    def _gathered(
        self,
        units: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        exchange: Exchange,
        step: int,
        raw: Mapping[str, Tensor] | None,
    ) -> Embedded:
        names = self.modalities
        if absent := [m for m in names if m not in units]:
            raise UserError(f"no embeddings of modality '{absent[0]}' were given: encode it too")
        vectors = [units[m] for m in names]
        check_shapes(vectors, names)
        if present is None:
            held = torch.ones(len(vectors[0]), len(names), dtype=torch.bool)
            held = held.to(vectors[0].device)
        else:
            if absent := [m for m in names if m not in present]:
                raise UserError(
                    f"`present` has no mask of modality '{absent[0]}': give one of each"
                )
            for m in names:
                check_mask(present[m], len(vectors[0]), m)
            held = torch.stack([present[m] for m in names], dim=1)
        if step % CHECK_EVERY == 0:
            check_units(vectors, names, held.unbind(1), exchange)
        before = None if raw is None else _kept([raw[m] for m in names], held)
        return Embedded(names, _kept(vectors, held), held, exchange, step, before)

    @abstractmethod
    def evaluate_batch(self, batch: Embedded) -> ObjectiveOutput:
        """The loss, outside autocast."""

    @abstractmethod
    def score(self, query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        """How well each candidate fits each query, [Q, C]; higher is better.

        Args:
            query: modality -> [Q, d] unit vectors of one or more modalities other than target.
            candidates: [C, d] unit vectors of the modality `target`.
            target: Its name.
        """

    def report(self, terms: Mapping[str, Tensor], **logs: Tensor) -> ObjectiveOutput:
        """The sum of the terms as loss; each term and the scale are logged."""
        loss = torch.stack(list(terms.values())).sum()
        shown = {f"loss/{name}": t.detach() for name, t in terms.items()}
        scale = loss.new_ones(()) * self.scale()
        return ObjectiveOutput(loss, shown | {"logit_scale": scale.detach()} | logs)


def _kept(vectors: Sequence[Tensor], held: Tensor) -> list[Tensor]:
    """Zeros where a sample lacks the modality, whatever stood there."""
    return [
        torch.where(has[:, None], e, e.new_zeros(()))
        for e, has in zip(vectors, held.unbind(1), strict=True)
    ]
