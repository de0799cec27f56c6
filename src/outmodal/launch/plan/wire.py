"""Bytes that each GPU sends in a step."""

from __future__ import annotations

from dataclasses import dataclass

from outmodal.train.backend import Strategy


@dataclass(frozen=True)
class Wire:
    """Bytes that one GPU sends in a step, by ring algorithms.

    Attributes:
        reduce: Gradients: all-reduce, or reduce-scatter under ZeRO 2 and 3.
        weights: Weights that come back: all-gathers of ZeRO.
        objective: Representations of the whole batch, and their gradients.
    """

    reduce: float
    weights: float
    objective: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return self.reduce + self.weights + self.objective


def traffic(
    parameters: int, strategy: Strategy, ranks: int, low: bool, encoded: float, passes: int = 1
) -> Wire:
    """Bytes of one step.

    Args:
        parameters: Trainable parameters.
        strategy: Who holds what.
        ranks: Processes.
        low: Whether ZeRO computes in bf16 (DDP reduces fp32 gradients either way).
        encoded: Bytes of this rank's representations that a whole-batch objective exchanges.
        passes: Forward and backward passes in a step (micro-batches): ZeRO 3 gathers in each.
    """
    share = (ranks - 1) / ranks
    width = 2.0 if low and strategy.startswith("zero") else 4.0
    whole = width * parameters * share
    reduced = {"single": 0.0, "ddp": 2 * whole, "zero0": 2 * whole, "zero1": 2 * whole}
    back = {"zero1": whole, "zero2": whole, "zero3": 2.0 * passes * whole}
    gathered = encoded * (ranks - 1)  # each rank's rows pass every other one
    return Wire(reduced.get(strategy, whole), back.get(strategy, 0.0), 2 * gathered)
