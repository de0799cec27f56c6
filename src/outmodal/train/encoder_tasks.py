"""Evaluations of frozen encoders: probes, combinations of modalities, retrieval.

As in "One vs All Information Bottleneck for Multi-Modal Alignment" (arXiv 2605.29900), Tables 1
to 3. Probes learn on the training split and are scored on the evaluation split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from outmodal.errors import UserError, nearest
from outmodal.train.combinations import (
    Missing,
    Split,
    Which,
    label_of,
    score_combinations,
    subsets,
)
from outmodal.train.evaluation import Evaluation
from outmodal.train.probing import ProbeConfig, answers
from outmodal.train.representations import Encoded, Encoder
from outmodal.train.retrieval import (
    Scorer,
    mean_cosine,
    recall_by,
    recall_in_pools,
    score_by,
)

POOL = 64
"""Candidates of a query in the small pools."""

Progress = Callable[[int, int], None]
Directions = Literal["rest", "pairs"]
"""rest: all other modalities together ask for each one; pairs: each asks for each other one."""


def probe_task(encoder: Encoder, train: str, test: str, config: ProbeConfig) -> Evaluation:
    """A probe on all modalities together: "accuracy" or "mse" on the split `test`."""
    metric, scores, samples = _combined(
        encoder, train, test, [encoder.modalities], config, "separate", None
    )
    return Evaluation({metric: scores[label_of(encoder.modalities)]}, samples, {})


def combinations_task(
    encoder: Encoder,
    train: str,
    test: str,
    config: ProbeConfig,
    *,
    which: Which = "all",
    missing: Missing = "separate",
    progress: Progress | None = None,
) -> Evaluation:
    """A probe of every combination: "fou+zer/accuracy" or "fou+zer/mse", on the split `test`."""
    wanted = subsets(encoder.modalities, which)
    metric, scores, samples = _combined(encoder, train, test, wanted, config, missing, progress)
    return Evaluation({f"{name}/{metric}": s for name, s in scores.items()}, samples, {})


def retrieve_task(
    encoder: Encoder,
    split: str,
    *,
    directions: Directions = "rest",
    query: Sequence[str] = (),
    target: str = "",
    pool: int = POOL,
    seed: int = 0,
) -> Evaluation:
    """Retrieval by the objective's own score, among the samples that have all that is asked.

    Args:
        encoder: The encoders.
        split: Split whose samples are queries and candidates.
        directions: What asks for what, unless `query` and `target` say it.
        query, target: Modalities that ask, and the one that is looked for.
        pool: Size of the small pools; 0 leaves them out.
        seed: Draws the small pools.

    Returns:
        "fou+zer_to_mor/map_instance" and so on, see `recall_by` and `recall_in_pools`; and their
        means over directions as "mean/map_instance".

    Raises:
        UserError: An unknown modality, or one that is both asked with and looked for.
    """
    encoded = encoder.encode(split)
    ways = _directions(encoded.modalities, directions, query, target)
    scorer = scorer_of(encoder.method)
    found = {
        f"{label_of(asked)}_to_{wanted}": _retrieved(encoded, scorer, asked, wanted, pool, seed)
        for asked, wanted in ways
    }
    metrics = {f"{way}/{name}": v for way, held in found.items() for name, v in held.items()}
    names = next(iter(found.values()))
    for name in names:
        values = [held[name] for held in found.values() if name in held]
        metrics[f"mean/{name}"] = sum(values) / len(values)
    return Evaluation(metrics, len(encoded.label), {})


def scorer_of(method: Any) -> Scorer:
    """The objective's own scorer where the method has one, else the mean cosine."""
    scorer = getattr(method, "score", None)
    return scorer if callable(scorer) else mean_cosine


def _combined(
    encoder: Encoder,
    train: str,
    test: str,
    wanted: Sequence[Sequence[str]],
    config: ProbeConfig,
    missing: Missing,
    progress: Progress | None,
) -> tuple[str, dict[str, float], int]:
    """The metric's name, scores by combination, samples of the evaluation split."""
    classes = len(encoder.dataset.manifest.classes)
    sides = []
    for split in (train, test):
        encoded = encoder.encode(split)
        sides.append(Split(encoded, answers(encoded, split, classes, config.predict)))
    learnt, asked = sides
    if learnt.answers.metric != asked.answers.metric:
        raise UserError(
            f"split '{train}' has {_kind(learnt)} and split '{test}' has {_kind(asked)}: name what "
            "to predict with --predict class or --predict target"
        )
    scores = score_combinations(learnt, asked, wanted, config, missing, progress)
    return asked.answers.metric, scores, len(asked.encoded.label)


def _kind(split: Split) -> str:
    return "targets" if split.answers.metric == "mse" else "classes"


def _directions(
    modalities: Sequence[str], directions: Directions, query: Sequence[str], target: str
) -> list[tuple[tuple[str, ...], str]]:
    if bool(query) != bool(target):
        raise UserError("--query and --target belong together: give both, or neither")
    for m in (*query, *((target,) if target else ())):
        if m not in modalities:
            raise UserError(f"this run has no encoder of '{m}'{nearest(m, modalities)}")
    if target in query:
        raise UserError(f"'{target}' is both in --query and --target: leave it out of one")
    if query:
        return [(tuple(query), target)]
    if len(modalities) < 2:
        raise UserError(
            f"retrieval needs two modalities, and this run encodes {', '.join(modalities)} only"
        )
    if directions == "pairs":
        return [((a,), b) for a in modalities for b in modalities if a != b]
    return [(tuple(m for m in modalities if m != wanted), wanted) for wanted in modalities]


def _retrieved(
    encoded: Encoded, scorer: Scorer, asked: Sequence[str], wanted: str, pool: int, seed: int
) -> dict[str, float]:
    rows = encoded.having([*asked, wanted])
    if not bool(rows.any()):
        raise UserError(
            f"no sample has all of {', '.join([*asked, wanted])}: choose other modalities"
        )
    units: dict[str, Tensor] = {m: encoded.unit[m][rows] for m in (*asked, wanted)}
    score = score_by(scorer, units, asked, wanted)
    count = int(rows.sum())
    with torch.no_grad():
        found = recall_by(score, count, encoded.label[rows], width=len(asked))
        return found | (recall_in_pools(score, count, pool, seed) if pool else {})
