"""Learners whose layers can be run one after the other, so that a method may step in between."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Layered(ABC):
    """A learner in stages: `pooled(onward(first(x)))` is what its `forward` gives.

    Attributes:
        depth: Number of layers behind the embedding.
    """

    depth: int

    @abstractmethod
    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed inputs [B, L] as hidden states [B, L, width], with the mask of places that count,
        [B, L] bool."""

    @abstractmethod
    def onward(self, hidden: Tensor, mask: Tensor, start: int, stop: int) -> Tensor:
        """Run layers start .. stop - 1 on hidden states [B, L, width]; places outside the mask
        are not attended to."""

    @abstractmethod
    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the representation [B, dim] of the last layer's hidden states."""
