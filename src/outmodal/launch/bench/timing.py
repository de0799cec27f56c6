"""Timing of alternatives in turns, so that what slows the machine down slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch


class Spent(NamedTuple):
    """Seconds on the wall and of the CPU, all threads together."""

    wall: float
    cpu: float


def spent_in_turns(
    alternatives: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[Spent]]:
    """What every call took, in rounds of one call each. Call them once before, to warm up."""
    spent: dict[str, list[Spent]] = {name: [] for name in alternatives}
    for _ in range(repeats):
        for name, run in alternatives.items():
            spent[name].append(_spent(run, device))
    return spent


def in_turns(
    alternatives: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds on the wall of every call, as `spent_in_turns`."""
    spent = spent_in_turns(alternatives, repeats, device)
    return {name: [s.wall for s in rounds] for name, rounds in spent.items()}


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of how many times longer `slow` took."""
    return median(s / f for s, f in zip(slow, fast, strict=True))


def _spent(run: Callable[[], object], device: torch.device) -> Spent:
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _wait(device)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
