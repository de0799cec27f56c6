"""The `data.mix` section of a run's configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from outmodal.base import Config
from outmodal.data.mixture_union import Classes


class SourceConfig(Config):
    """One data set of a mixture.

    Attributes:
        path: Data set: a folder, an address, or the name of the embedded one.
        split: Its split to train on; "" is data.train_split.
        weight: Drawn so many times as often as its samples alone would have it.
        proportion: Its part of the samples that are drawn, to any scale; all sources have one,
            or none has.
        classes: How its classes join those of the sources before it: "offset" (they are new
            ones), "same" (they are the first source's), or a mapping from its names to theirs.
    """

    path: str
    split: str = ""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    proportion: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    classes: Classes = "offset"


def check_mix(mix: Sequence[SourceConfig], temperature: float) -> None:
    """Raise ValueError for sources that do not fit together."""
    twice = [path for path, count in Counter(s.path for s in mix).items() if count > 1]
    if twice:
        raise ValueError(
            f"mix names {twice[0]} twice: name it once, with a larger weight or proportion"
        )
    given = [s.path for s in mix if s.proportion is not None]
    if given and len(given) < len(mix):
        lacking = next(s.path for s in mix if s.proportion is None)
        raise ValueError(
            f"mix: {given[0]} has a proportion and {lacking} has none: give all sources one, or "
            "none (shares then follow the numbers of samples)"
        )
    if given and (temperature != 1.0 or any(s.weight != 1.0 for s in mix)):
        raise ValueError(
            "mix: proportions set the shares themselves, so leave temperature and weights out"
        )
