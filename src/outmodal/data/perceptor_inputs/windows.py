"""Windows at even distances over a recording."""

from __future__ import annotations

from fractions import Fraction


def spread_windows(
    duration: Fraction, length: float, count: int
) -> list[tuple[Fraction, Fraction]]:
    """Return (start, end) in seconds of `count` windows, the first at 0, the last at the end.

    A recording shorter than `length` gives `count` equal windows that end beyond it. The
    arithmetic is exact: rounding would move a window by a sample or a frame.
    """
    window = Fraction(length)
    last = max(duration - window, Fraction(0))
    starts = [last * i / (count - 1) if count > 1 else Fraction(0) for i in range(count)]
    return [(start, start + window) for start in starts]
