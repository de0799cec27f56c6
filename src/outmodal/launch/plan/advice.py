"""What to change where a recipe does not fit: the least first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outmodal.launch.plan.hardware import Machine
from outmodal.launch.plan.memory import Memory
from outmodal.train.backend import Strategy

if TYPE_CHECKING:
    from outmodal.launch.plan.estimate import Planner


@dataclass(frozen=True)
class Option:
    """A change, and the memory it leads to.

    Attributes:
        change: Options of `outmodal train` that make it.
        memory: Bytes on one GPU.
    """

    change: str
    memory: Memory


def first_that_fits(
    planner: Planner, machine: Machine, rows: int, passes: int, strategy: Strategy
) -> Option | None:
    """The first change in the order of what it costs that fits, or None."""
    for option in _options(planner, machine, rows, passes, strategy):
        if option.memory.total <= machine.usable:
            return option
    return None


def _options(
    planner: Planner, machine: Machine, rows: int, passes: int, strategy: Strategy
) -> Iterator[Option]:
    """Sharding costs least, then computing activations again, then smaller passes."""
    shards: tuple[Strategy, ...] = ("zero1", "zero2", "zero3") if machine.size > 1 else ()
    ladder = [strategy, *(s for s in shards if s > strategy or strategy == "ddp")]
    kinds = (False, True) if planner.checkpointed is not None else (False,)
    pieces = 1
    while rows % pieces == 0 and rows // pieces >= 1:
        for again in kinds:
            for s in ladder:
                changes = [f"--engine.strategy {s}"] if s != strategy else []
                changes += ["--engine.activation_checkpointing True"] if again else []
                changes += [planner.smaller_passes(rows, passes, pieces)] if pieces > 1 else []
                memory = planner.memory(machine, rows // pieces, s, again)
                yield Option(" ".join(changes), memory)
        pieces *= 2
