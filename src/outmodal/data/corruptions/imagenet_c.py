"""ImageNet-C: the names of its corruptions, and the reference network's errors.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019): the corruption error CE is a network's error over the five severities
divided by AlexNet's; mCE is the mean of CE over fifteen corruptions. AlexNet's mean errors are the
ones the authors publish (github.com/hendrycks/robustness).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

ALEXNET: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Corruption -> AlexNet's top-1 error on ImageNet-C, mean over severities."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Corruptions that the authors give for validation; they do not count in mCE."""

SEVERITIES = (1, 2, 3, 4, 5)
_CELL = re.compile(r"([a-z_]+)-([1-5])")


def cell_name(corruption: str, severity: int) -> str:
    """The split of a data set that holds one corruption at one severity.

    >>> cell_name("snow", 3)
    'snow-3'
    """
    return f"{corruption}-{severity}"


def cells(splits: Iterable[str]) -> dict[str, dict[int, str]]:
    """Corruption -> severity -> split, of those splits that are named so; in the order of mCE."""
    found: dict[str, dict[int, str]] = {name: {} for name in (*ALEXNET, *EXTRA)}
    for split in splits:
        match = _CELL.fullmatch(split)
        if match and match[1] in found:
            found[match[1]][int(match[2])] = split
    return {name: dict(sorted(held.items())) for name, held in found.items() if held}
