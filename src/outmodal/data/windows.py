"""Windows on a recording: where clips of one length are cut out of sounds and films.

start     one clip at the start
uniform   the middles of equal parts: one clip lies in the middle of the recording
random    one place drawn in each of equal parts; without a draw the same as uniform
imagebind the first at the start, the last at the end, the rest at even distances between

Wang et al., 2016 (temporal segment networks) draw in equal parts; ImageBind (Girdhar et al., 2023)
reads 3 clips of a sound and 5 of a film at the places of the last.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np

Place = Literal["start", "uniform", "random", "imagebind"]
Window = tuple[Fraction, Fraction]


def windows(
    duration: Fraction | int,
    length: Fraction | float,
    count: int,
    place: Place,
    generator: np.random.Generator | None = None,
) -> list[Window]:
    """Return (start, end) of `count` windows, in the unit of `duration` and `length`.

    A recording shorter than `length` gives equal windows from its start that end beyond it. The
    arithmetic is exact: rounding would move a window by a sample or a frame.

    Args:
        duration: Of the recording: seconds, samples or frames.
        length: Of a window.
        count: Windows; "start" has one.
        place: See above.
        generator: Draws the places of "random".
    """
    last = max(Fraction(duration) - Fraction(length), Fraction(0))
    if place == "start":
        starts = [Fraction(0)] * count
    elif place == "imagebind":
        starts = [last * i / (count - 1) if count > 1 else Fraction(0) for i in range(count)]
    else:
        drawn = [Fraction(1, 2)] * count
        if place == "random" and generator is not None:
            drawn = [Fraction(u) for u in generator.random(count).tolist()]
        starts = [last * (i + u) / count for i, u in enumerate(drawn)]
    return [(start, start + Fraction(length)) for start in starts]


def spread_windows(duration: Fraction, length: float, count: int) -> list[Window]:
    """Return (start, end) in seconds of `count` windows, the first at 0, the last at the end."""
    return windows(duration, length, count, "imagebind")


def check_windows(place: str, clips: int) -> None:
    """Raise ValueError where several clips are asked for of a window that has one place."""
    if place in ("start", "whole") and clips > 1:
        raise ValueError(
            f"window '{place}' gives one clip, not {clips}: use uniform, random or imagebind"
        )
