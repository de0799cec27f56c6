"""What is lost when modalities are missing, and the model is not told.

The protocol of "What Makes for Robust Multi-Modal Models in the Face of Missing Modalities?" (Li et
al., 2023): the accuracy with complete inputs, with each modality in turn replaced by an input
without information for every test sample, and their mean; and over the share of samples that lack
something. What stands for a modality are zeros in the tensor that its encoder receives, or a single
blank where it reads text. What judges is the classifier that a run trained on all modalities, or
one probe on those of frozen encoders, trained on the complete samples of the training split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train.combinations import Split, label_of
from outmodal.train.encoder_tasks import answered, sides
from outmodal.train.intervals import Bootstrap
from outmodal.train.judging import Judge, fused_classifier
from outmodal.train.probing import (
    Answers,
    ProbeConfig,
    concatenated,
    fit,
    judged,
    predicted,
    require_answers,
)
from outmodal.train.representations import Encoded, Encoder, without
from outmodal.train.results import Evaluation, Of, Table

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
ANY = "any"
"""Name of the sweep in which a sample lacks some modalities, never all."""
PLAIN = Bootstrap()


def missing_task(
    encoder: Encoder,
    train: str,
    test: str,
    config: ProbeConfig,
    *,
    judge: Judge = "auto",
    rates: Sequence[float] = RATES,
    seed: int = 0,
    bootstrap: Bootstrap = PLAIN,
) -> Evaluation:
    """Accuracy (or mean squared error) of all modalities together as they go missing.

    Test samples that lack a modality as they are have its substitute in every row.

    Args:
        encoder: Encoders of two modalities or more.
        train, test: Splits.
        config: The probe.
        judge: What judges.
        rates: Shares of the sweep.
        seed: Decides, with a sample's place in the split, from which rate on it lacks something.
        bootstrap: Of the intervals.

    Returns:
        "complete/accuracy", "miss_M/accuracy" for each modality M and "average/accuracy", the mean
        of these; "sweep_M/0.3/accuracy" where that share of the samples lacks M, and
        "sweep_any/0.3/accuracy" where it lacks one of all proper subsets, equally likely.

    Raises:
        UserError: One modality only, rates outside 0..1, or nothing that could judge.
    """
    _check(encoder, rates)
    every = encoder.modalities
    asked, said = _judgement(encoder, train, test, config, judge)
    blanks = {m: encoder.blank(m) for m in every}
    seen = _filled(asked, blanks)

    def values(gone: Sequence[str]) -> Tensor:
        shown = seen
        for m in gone:
            shown = without(shown, m, torch.ones_like(shown.label, dtype=torch.bool), blanks[m])
        return judged(said(shown), asked.answers)

    found = {gone: values(gone) for gone in [(), *_proper(every)]}
    table, metric = Table(bootstrap), asked.answers.metric
    _protocol(table, metric, every, found)
    _sweep(table, metric, asked.encoded, asked.answers, every, found, rates, seed)
    settings = {"probe": config.model_dump(), "rates": list(rates), "seed": seed, "judge": judge}
    return table.done(len(asked.encoded.label), **settings)


Said = Callable[[Encoded], Tensor]
"""Samples of the test split -> outputs [n, C] for those with an answer."""


def _judgement(
    encoder: Encoder, train: str, test: str, config: ProbeConfig, judge: Judge
) -> tuple[Split, Said]:
    """The test split with its answers, and what says them."""
    every, fused = encoder.modalities, fused_classifier(encoder, judge)
    if fused is not None:
        asked = answered(encoder, test, "class")
        require_answers("evaluation", asked.answers)

        def said(shown: Encoded) -> Tensor:
            r = {m: t[asked.answers.known] for m, t in shown.representation.items()}
            with torch.no_grad():
                return fused(r)

        return asked, said
    learnt, asked = sides(encoder, train, test, config.predict)
    usable = learnt.usable(every)
    require_answers("training", usable)
    network = fit(concatenated(learnt.encoded, every, config.on), usable, config)
    return asked, lambda shown: predicted(
        network, concatenated(shown, every, config.on), asked.answers
    )


Judged = dict[tuple[str, ...], Tensor]
"""Modalities that are gone -> hits or squared errors of the samples with an answer."""


def _protocol(table: Table, metric: str, every: Sequence[str], found: Judged) -> None:
    rows = {"complete": found[()], **{f"miss_{m}": found[(m,)] for m in every}}
    for name, values in rows.items():
        gone = name.removeprefix("miss_") if name != "complete" else None
        table.mean(f"{name}/{metric}", metric, values, Of(modality=gone, rate=float(bool(gone))))
    mean = torch.stack(list(rows.values())).mean(dim=0)
    table.mean(f"average/{metric}", metric, mean, Of(combination="average"))


def _sweep(
    table: Table,
    metric: str,
    encoded: Encoded,
    answers: Answers,
    every: Sequence[str],
    found: Judged,
    rates: Sequence[float],
    seed: int,
) -> None:
    assert encoded.index is not None
    place = encoded.index[answers.known].cpu().numpy()
    subsets = _proper(every)
    which = (uniforms(seed, "which", place) * len(subsets)).astype(np.int64)
    by_subset = torch.stack([found[gone] for gone in subsets])
    chosen = by_subset.gather(0, torch.from_numpy(which)[None].to(by_subset.device))[0]
    for name, lacking in ({m: found[(m,)] for m in every} | {ANY: chosen}).items():
        drawn = torch.from_numpy(uniforms(seed, name, place)).to(lacking.device)
        for rate in rates:
            values = torch.where(drawn < rate, lacking, found[()])
            of = Of(modality=name, rate=rate)
            table.mean(f"sweep_{name}/{rate:g}/{metric}", metric, values, of)


def uniforms(seed: int, word: str, place: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N] numbers in 0..1 of samples by their places in the split, whatever else is asked for."""
    digest = hashlib.blake2b(f"{seed}\0{word}".encode(), digest_size=16).digest()
    stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    drawn: NDArray[np.float64] = stream.random(int(place.max()) + 1)[place]
    return drawn


def _filled(asked: Split, blanks: dict[str, tuple[Tensor, Tensor]]) -> Encoded:
    """Substitutes for what test samples lack; nothing is marked as absent any more."""
    encoded = asked.encoded
    for m, blank in blanks.items():
        encoded = without(encoded, m, ~encoded.present[m], blank)
    present = {m: torch.ones_like(held) for m, held in encoded.present.items()}
    return replace(encoded, present=present)


def _proper(every: Sequence[str]) -> list[tuple[str, ...]]:
    """Non-empty proper subsets."""
    return [gone for size in range(1, len(every)) for gone in combinations(every, size)]


def _check(encoder: Encoder, rates: Sequence[float]) -> None:
    if len(encoder.modalities) < 2:
        raise UserError(
            f"{encoder.source.name} encodes {label_of(encoder.modalities)} only, so nothing is "
            "left when it is missing: name a run of several modalities, or two exports"
        )
    for rate in rates:
        if not 0 <= rate <= 1:
            raise UserError(f"--rates: {rate:g} is no share of samples: give numbers from 0 to 1")
