"""Bytes on one GPU for each strategy, with and without computing activations again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from outmodal.launch.plan.costs import Costs
from outmodal.train.backend import Strategy

STRATEGIES: tuple[Strategy, ...] = ("single", "ddp", "zero1", "zero2", "zero3")
ZERO_BUCKET = 500_000_000  # numbers in DeepSpeed's default reduction buffer
GATHERED = 1_000_000_000  # parameters that ZeRO 3 keeps whole at a time, by default


@dataclass(frozen=True)
class Holding:
    """What a run holds, whatever the strategy.

    Attributes:
        parameters: Trainable parameters.
        moments: Numbers the optimizer keeps for each parameter.
        averaged: Whether a moving average of the weights is kept.
        frozen: Bytes of frozen weights and live perceptors.
        inputs: Bytes of a step's batch.
        precision: Arithmetic.
        device: Where tensors live: buffers of a fixed size take no memory on a CPU until used.
    """

    parameters: int
    moments: int
    averaged: bool
    frozen: int
    inputs: int
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Memory:
    """Where the bytes of one GPU go.

    Attributes:
        parts: "weights" (masters, and what the strategy computes with), "gradients" (and the
            buckets they are reduced in), "optimizer" (moments, and an average of the weights),
            "activations" (at the worst moment of the backward), "frozen", "inputs".
    """

    strategy: Strategy
    checkpointed: bool
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.parts.values())


def estimate(
    held: Holding, costs: Costs, strategy: Strategy, ranks: int, checkpointed: bool
) -> Memory:
    """Bytes on one GPU.

    Args:
        held: What the run holds.
        costs: One pass's, counted on one process: its peak contains the gradients.
        strategy: Who holds what.
        ranks: Processes that share what the strategy shards.
        checkpointed: Whether `costs` computes activations again.
    """
    p, zero = held.parameters, strategy.startswith("zero")
    low = held.precision == "bf16"
    share = 1 / ranks if zero else 1.0
    gradients = 4.0 * p
    parts = {
        "weights": _weights(held, strategy, share),
        "gradients": _gradients(held, strategy, share),
        "optimizer": 4.0 * p * (held.moments + held.averaged) * share,
        "activations": max(costs.peak - gradients, costs.kept if zero else 0.0, 0.0),
        "frozen": float(held.frozen),
        "inputs": float(held.inputs),
    }
    if zero and low:  # autocast keeps a bf16 copy of fp32 weights; ZeRO's weights are bf16
        parts["activations"] = max(parts["activations"] - 2.0 * p, 0.0)
    return Memory(strategy, checkpointed, parts)


def _weights(held: Holding, strategy: Strategy, share: float) -> float:
    p = held.parameters
    if not strategy.startswith("zero"):
        return 4.0 * p
    width = 2.0 if held.precision == "bf16" else 4.0
    used = width * (min(p, GATHERED) + p * share if strategy == "zero3" else p)
    return used + 4.0 * p * share


def _gradients(held: Holding, strategy: Strategy, share: float) -> float:
    p = held.parameters
    if strategy == "single":
        return 4.0 * p
    if strategy == "ddp":
        return 8.0 * p  # gradients, and the buckets they are reduced in
    width = 2.0 if held.precision == "bf16" else 4.0
    kept = width * p * (1.0 if strategy == "zero1" else share)
    bucket = width * min(p, ZERO_BUCKET) if held.device == "cpu" else width * ZERO_BUCKET
    return kept + bucket + (4.0 * p * share if held.precision == "bf16" else 0.0)
