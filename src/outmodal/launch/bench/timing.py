"""Timing of alternatives in turns, so that what slows the machine down slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def in_turns(
    alternatives: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every call, in rounds of one call each. Call them once before, to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(repeats):
        for name, run in alternatives.items():
            seconds[name].append(_seconds(run, device))
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of how many times longer `slow` took."""
    return median(s / f for s, f in zip(slow, fast, strict=True))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
