"""Step time by roofline, what the loader must deliver, and how often to write checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from outmodal.launch.plan.costs import Costs
from outmodal.launch.plan.hardware import Machine
from outmodal.launch.plan.wire import Wire

HIDDEN = 0.6  # share of a pass behind which gradient traffic disappears: most of the backward
SNAPSHOT_RATE = 10e9  # bytes a second from a GPU to the memory of its node
GPU_HOURS_PER_FAILURE = 50_000.0
"""Of Llama 3's training on 16,384 H100s: 419 unexpected interruptions in 54 days (Grattafiori
et al., 2024, section 3.3.4)."""
RESTART_SECONDS = 300.0


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step.

    Attributes:
        compute: Forward and backward passes.
        update: Optimizer: it reads and writes all its numbers once.
        exposed: Communication that nothing hides.
    """

    compute: float
    update: float
    exposed: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.update + self.exposed


def step_time(
    costs: Costs, passes: int, wire: Wire, machine: Machine, low: bool, state_bytes: float
) -> Step:
    """Time of a step on one GPU.

    Args:
        costs: Of one pass.
        passes: Passes in a step.
        wire: Bytes of a step.
        machine: Where.
        low: bf16 matrix products.
        state_bytes: Weights, gradients and moments that the optimizer reads on this GPU.
    """
    gpu, reach = machine.gpu, machine.reach
    rate = gpu.bf16 if low else gpu.fp32
    one = costs.seconds(rate * reach, gpu.bandwidth * 0.8)
    compute = one * passes
    gradient = (wire.reduce + wire.weights) / machine.wire
    exposed = max(0.0, gradient - HIDDEN * one) + wire.objective / machine.wire
    return Step(compute, 1.5 * state_bytes / (gpu.bandwidth * 0.8), exposed)


@dataclass(frozen=True)
class Survival:
    """Checkpoints against failures (Young, 1974; Daly, 2006).

    Attributes:
        bytes: Size of a checkpoint.
        stall: Seconds a step waits for the snapshot.
        between_failures: Mean seconds between failures of the job.
        interval: Seconds between checkpoints that lose least.
        overhead: Share of the time lost to stalls, to work done again and to restarts.
    """

    bytes: float
    stall: float
    between_failures: float
    interval: float
    overhead: float


def survival(
    size: float, machine: Machine, failure_hours: float, write_rate: float, sharded: int
) -> Survival:
    """The best interval between checkpoints.

    Args:
        size: Bytes of a checkpoint.
        machine: The job.
        failure_hours: GPU hours for each failure.
        write_rate: Bytes a second to the run's folder, behind the training.
        sharded: GPUs that hold a part each: they copy at once, the rest travels the wire.
    """
    stall = size / SNAPSHOT_RATE + (size / machine.wire if sharded > 1 else 0.0)
    mean = failure_hours * 3600 / machine.size
    interval = max(math.sqrt(2 * max(stall, 0.1) * mean), size / write_rate)
    lost = stall / interval + interval / (2 * mean) + RESTART_SECONDS / mean
    return Survival(size, stall, mean, interval, min(lost, 1.0))
