"""Probes of every combination of modalities: what each tells alone, and what together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations as chosen
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from outmodal.errors import UserError, nearest
from outmodal.train import gather
from outmodal.train.probing import (
    Answers,
    ProbeConfig,
    concatenated,
    fit,
    judged,
    predicted,
    require_answers,
)
from outmodal.train.representations import Encoded
from outmodal.train.shares import in_turn

Missing = Literal["separate", "zero_fill", "mean_fill"]
"""separate: a probe of its own for each combination. zero_fill, mean_fill: one probe of all
modalities, which sees zeros or the training mean for those that are left out."""

Which = Literal["all", "ends"]
"""Every combination, or single modalities and all of them together."""


@dataclass(frozen=True)
class Split:
    """Samples with the answers that a probe has to give."""

    encoded: Encoded
    answers: Answers

    def usable(self, modalities: Sequence[str]) -> Answers:
        """The answers of the samples that have all of these modalities."""
        return replace(self.answers, known=self.answers.known & self.encoded.having(modalities))


def subsets(modalities: Sequence[str], which: Which = "all") -> list[tuple[str, ...]]:
    """Non-empty combinations, small ones first, in the order of `modalities`.

    >>> subsets(["a", "b", "c"], "ends")
    [('a',), ('b',), ('c',), ('a', 'b', 'c')]
    """
    sizes = range(1, len(modalities) + 1)
    found = [subset for size in sizes for subset in chosen(modalities, size)]
    if which == "ends":
        return [s for s in found if len(s) in (1, len(modalities))]
    return found


def label_of(subset: Sequence[str]) -> str:
    """A combination's name in results: "fou+zer"."""
    return "+".join(subset)


def score_combinations(
    train: Split,
    test: Split,
    wanted: Sequence[Sequence[str]],
    config: ProbeConfig,
    missing: Missing = "separate",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Accuracy (or mean squared error) on `test` of each combination, by its `label_of`.

    Args and errors: see `judge_combinations`.
    """
    found = judge_combinations(train, test, wanted, config, missing, progress)
    return {name: float(np.mean(values)) for name, values in found.items()}


def judge_combinations(
    train: Split,
    test: Split,
    wanted: Sequence[Sequence[str]],
    config: ProbeConfig,
    missing: Missing = "separate",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Hits (or squared errors) of the samples of `test` by each combination, by its `label_of`.

    A sample counts for the combinations of which it has every modality. Processes of a group take
    combinations in turn.

    Args:
        train, test: Samples to learn from, and to answer.
        wanted: Combinations.
        config: The probe, the same for all.
        missing: What becomes of the modalities that are not in a combination.
        progress: Called with (combinations done, in all).

    Raises:
        UserError: A combination names an unknown modality, or no sample has all of it.
    """
    for subset in wanted:
        _check(subset, train.encoded.modalities)
    if missing == "separate":
        judge = _separately(train, test, config)
    else:
        judge = _filled(train, test, config, missing)
    done = 0

    def act(subset: Sequence[str]) -> list[float]:
        nonlocal done
        if progress is not None:
            progress(done, len(wanted))
        done += gather.world().size
        values: list[float] = judge(tuple(subset)).tolist()
        return values

    found = in_turn(wanted, act)
    return {label_of(s): values for s, values in zip(wanted, found, strict=True)}


def _separately(
    train: Split, test: Split, config: ProbeConfig
) -> Callable[[tuple[str, ...]], Tensor]:
    def judge(subset: tuple[str, ...]) -> Tensor:
        learnt, asked = (split.usable(subset) for split in (train, test))
        require_answers("training", learnt)
        network = fit(concatenated(train.encoded, subset, config.on), learnt, config)
        x = concatenated(test.encoded, subset, config.on)
        return judged(predicted(network, x, asked), asked)

    return judge


def _filled(
    train: Split, test: Split, config: ProbeConfig, missing: Missing
) -> Callable[[tuple[str, ...]], Tensor]:
    every = train.encoded.modalities
    features = train.encoded.features(config.on)
    fill = [_stand_in(features[m][train.encoded.present[m]], missing) for m in every]
    usable = train.usable(every)
    require_answers("training", usable)
    network = fit(concatenated(train.encoded, every, config.on, fill), usable, config)

    def judge(subset: tuple[str, ...]) -> Tensor:
        shown = {
            m: held if m in subset else torch.zeros_like(held)
            for m, held in test.encoded.present.items()
        }
        seen = replace(test.encoded, present=shown)
        x, asked = concatenated(seen, every, config.on, fill), test.usable(subset)
        return judged(predicted(network, x, asked), asked)

    return judge


def _stand_in(rows: Tensor, missing: Missing) -> Tensor:
    return rows.mean(dim=0) if missing == "mean_fill" else rows.new_zeros(rows.shape[1])


def _check(subset: Sequence[str], known: Sequence[str]) -> None:
    for m in subset:
        if m not in known:
            raise UserError(f"this run has no encoder of '{m}'{nearest(m, known)}")
