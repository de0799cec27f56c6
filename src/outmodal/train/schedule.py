"""Learning rate as a pure function of the step, so that it needs no state and no wrapper."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["cosine", "constant", "wsd"]

WSD_DECAY = 0.2  # share of the run that warm-up-stable-decay spends on its decay


def factor(
    step: int,
    total: int,
    warmup: int,
    name: ScheduleName = "cosine",
    min_ratio: float = 0.0,
    start: float = 0.0,
    cooldown: int = 0,
) -> float:
    """Return the factor on the base learning rate for optimizer step `step` (from 0).

    The warm-up is linear and ends at factor 1 on step `warmup`; its first step is not 0. Then
    `constant` stays at 1, `cosine` falls towards `min_ratio`, and `wsd` stays at 1 and falls
    linearly over the last fifth of the run. `min_ratio` itself would come at step `total`, so
    that no step is lost at the end either. With `start` above 0 the first step of the warm-up has
    that factor. The last `cooldown` steps stay at `min_ratio`, and what falls has fallen before.

    >>> [round(factor(s, 10, 2), 3) for s in (0, 1, 2, 6, 9)]
    [0.333, 0.667, 1.0, 0.5, 0.038]
    >>> [round(factor(s, 10, 2, min_ratio=0.1, start=0.1, cooldown=3), 3) for s in (0, 1, 2, 7, 9)]
    [0.1, 0.55, 1.0, 0.1, 0.1]
    """
    if step < warmup:
        return start + (1.0 - start) * step / warmup if start else (step + 1) / (warmup + 1)
    if name == "constant":
        return 1.0
    total -= cooldown
    begin = warmup if name == "cosine" else max(warmup, total - round(WSD_DECAY * total))
    share = min(1.0, max(0.0, (step - begin) / max(1, total - begin)))
    fallen = share if name == "wsd" else 0.5 * (1.0 - math.cos(math.pi * share))
    return 1.0 - (1.0 - min_ratio) * fallen
