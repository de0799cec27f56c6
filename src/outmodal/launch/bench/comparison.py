"""Figures of loops that took turns: rates, and by how much one takes longer than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import binom

from outmodal.launch.bench.timing import Spent

Turns = Mapping[str, Sequence[Spent]]


@dataclass(frozen=True)
class Excess:
    """By how much one loop takes longer than another.

    Attributes:
        median: Over the rounds of their turns, 0.03 for 3 %.
        interval: Holds the true median with a probability of 95 % where turns are independent;
            None where there are too few of them to say so.
    """

    median: float
    interval: tuple[float, float] | None


def excess(slow: Sequence[Spent], fast: Sequence[Spent], *, wall: bool) -> Excess:
    """Compare two loops turn by turn, by time on the wall or of the CPU."""
    clock = 0 if wall else 1
    ratios = np.sort([a[clock] / b[clock] - 1 for a, b in zip(slow, fast, strict=True)])
    cut = int(binom.ppf(0.025, len(ratios), 0.5)) - 1  # of so many ratios is fewer than 2.5 %
    interval = (float(ratios[cut]), float(ratios[-1 - cut])) if cut >= 0 else None
    return Excess(float(np.median(ratios)), interval)


def compared(spent: Turns, images: int, *, wall: bool) -> dict[str, Any]:
    """What the loops `bare`, `again`, `recipe` and, if it is another, `plain` say.

    Args:
        spent: Their turns.
        images: Of a turn.
        wall: Compare time on the wall, of a GPU for instance; else CPU time.

    Returns:
        "runs", and as shares of the faster one's time "overhead", "synergy_overhead" (None
        without `plain`) and "control", by which two equal loops seem to differ; "intervals" of
        each that there is.
    """
    plain = "plain" if "plain" in spent else "recipe"
    pairs = {"overhead": (plain, "bare"), "control": ("again", "bare")}
    if plain == "plain":
        pairs["synergy_overhead"] = ("recipe", plain)
    found = {
        name: excess(spent[slow], spent[fast], wall=wall) for name, (slow, fast) in pairs.items()
    }
    return {
        "runs": rates(spent, images),
        "synergy_overhead": None,
        **{name: one.median for name, one in found.items()},
        "intervals": {name: one.interval for name, one in found.items()},
    }


def rates(spent: Turns, images: int) -> dict[str, dict[str, float]]:
    """Images a second of each loop, by its median turn."""
    return {
        name: {
            "images_per_s": images / median(s.wall for s in turns),
            "images_per_cpu_s": images / median(s.cpu for s in turns),
        }
        for name, turns in spent.items()
    }
