"""Evaluations of frozen encoders: probes, neighbours, combinations of modalities, retrieval.

As in "One vs All Information Bottleneck for Multi-Modal Alignment" (arXiv 2605.29900), Tables 1
to 3. Probes learn on the training split and are scored on the evaluation split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from outmodal.errors import UserError, nearest
from outmodal.train.combinations import (
    Missing,
    Split,
    Which,
    judge_combinations,
    label_of,
    subsets,
)
from outmodal.train.intervals import Bootstrap
from outmodal.train.knn import KnnConfig, knn
from outmodal.train.probing import ProbeConfig, answers
from outmodal.train.representations import Encoded, Encoder
from outmodal.train.results import Evaluation, Of, Table
from outmodal.train.retrieval import Scorer, places_by, score_by, values_in_pools

POOL = 64
"""Candidates of a query in the small pools."""

Progress = Callable[[int, int], None]
Directions = Literal["rest", "pairs"]
"""rest: all other modalities together ask for each one; pairs: each asks for each other one."""

PLAIN = Bootstrap()


def probe_task(
    encoder: Encoder, train: str, test: str, config: ProbeConfig, bootstrap: Bootstrap = PLAIN
) -> Evaluation:
    """A probe on all modalities together: "accuracy" or "mse" on the split `test`."""
    learnt, asked = sides(encoder, train, test, config.predict)
    found = judge_combinations(learnt, asked, [encoder.modalities], config)
    metric, table = asked.answers.metric, Table(bootstrap)
    for name, values in found.items():
        table.mean(metric, metric, values, Of(combination=name))
    return table.done(len(asked.encoded.label), probe=config.model_dump())


def knn_task(
    encoder: Encoder,
    train: str,
    test: str,
    config: KnnConfig,
    predict: str = "auto",
    bootstrap: Bootstrap = PLAIN,
) -> Evaluation:
    """Nearest neighbours by all modalities together: "weighted_k20", "plain_k20" and so on."""
    learnt, asked = sides(encoder, train, test, predict)
    every, table = encoder.modalities, Table(bootstrap)
    known, wanted = ((side.encoded, side.usable(every)) for side in (learnt, asked))
    knn(table, known, wanted, every, config, Of(combination=label_of(every)))
    return table.done(len(asked.encoded.label), knn=config.model_dump(mode="json"))


def combinations_task(
    encoder: Encoder,
    train: str,
    test: str,
    config: ProbeConfig,
    *,
    which: Which = "all",
    missing: Missing = "separate",
    progress: Progress | None = None,
    bootstrap: Bootstrap = PLAIN,
) -> Evaluation:
    """A probe of every combination: "fou+zer/accuracy" or "fou+zer/mse", on the split `test`."""
    wanted = subsets(encoder.modalities, which)
    learnt, asked = sides(encoder, train, test, config.predict)
    found = judge_combinations(learnt, asked, wanted, config, missing, progress)
    metric, table = asked.answers.metric, Table(bootstrap)
    for name, values in found.items():
        table.mean(f"{name}/{metric}", metric, values, Of(combination=name))
    settings = {"probe": config.model_dump(), "subsets": which, "missing": missing}
    return table.done(len(asked.encoded.label), **settings)


def retrieve_task(
    encoder: Encoder,
    split: str,
    *,
    directions: Directions = "rest",
    query: Sequence[str] = (),
    target: str = "",
    pool: int = POOL,
    seed: int = 0,
    most: int = 0,
    bootstrap: Bootstrap = PLAIN,
) -> Evaluation:
    """Retrieval by the objective's own score, among the samples that have all that is asked.

    Args:
        encoder: The encoders.
        split: Split whose samples are queries and candidates.
        directions: What asks for what, unless `query` and `target` say it.
        query, target: Modalities that ask, and the one that is looked for.
        pool: Size of the small pools; 0 leaves them out.
        seed: Draws the small pools.
        most: Samples of the split at most; 0 is all.
        bootstrap: Intervals are over queries; the candidates stay.

    Returns:
        "fou+zer_to_mor/map_instance" and so on, see `recall_by` and `recall_in_pools`; and their
        means over directions as "mean/map_instance".

    Raises:
        UserError: An unknown modality, or one that is both asked with and looked for.
    """
    ways = _directions(encoder, directions, query, target)
    _same_space(encoder, ways)
    encoded = encoder.encode(split, most=most)
    scorer, table = encoder.source.scorer, Table(bootstrap)
    found = {
        f"{label_of(asked)}_to_{wanted}": _retrieved(encoded, scorer, asked, wanted, pool, seed)
        for asked, wanted in ways
    }
    for way, held in found.items():
        for name, values in held.items():
            table.mean(f"{way}/{name}", name, values, Of(combination=way))
    masks = [encoded.having([*asked, wanted]) for asked, wanted in ways]
    _means(table, found, all(torch.equal(masks[0], mask) for mask in masks))
    settings = {"directions": directions, "pool": pool, "seed": seed}
    return table.done(len(encoded.label), **settings)


def sides(encoder: Encoder, train: str, test: str, predict: str = "auto") -> tuple[Split, Split]:
    """The training and the evaluation split with the answers that a probe has to give.

    Raises:
        UserError: A split without answers, or two splits with answers of two kinds; see
            `learnable`.
    """
    encoder.dataset.split(test)
    learnt, asked = learnable(encoder, train, predict), answered(encoder, test, predict)
    if learnt.answers.metric != asked.answers.metric:
        raise UserError(
            f"split '{train}' has {_kind(learnt)} and split '{test}' has {_kind(asked)}: name what "
            "to predict with --predict class or --predict target"
        )
    return learnt, asked


def answered(encoder: Encoder, split: str, predict: str = "auto") -> Split:
    """A split with the answers that a probe has to give; UserError where it has none."""
    encoded = encoder.encode(split)
    classes = len(encoder.dataset.manifest.classes)
    return Split(encoded, answers(encoded, split, classes, predict))


def learnable(encoder: Encoder, split: str, predict: str = "auto") -> Split:
    """The same of a split to learn from; UserError where all its samples are of one class."""
    found = answered(encoder, split, predict)
    if found.answers.metric == "accuracy":
        held = set(found.answers.truth[found.answers.known].tolist())
        if len(held) == 1:
            raise UserError(
                f"all labelled samples of the training split '{split}' are of one class, "
                f"'{encoder.dataset.manifest.classes[held.pop()]}', so there is nothing to tell "
                "apart: name another one with --train_split"
            )
    return found


def _kind(split: Split) -> str:
    return "targets" if split.answers.metric == "mse" else "classes"


def _directions(
    encoder: Encoder, directions: Directions, query: Sequence[str], target: str
) -> list[tuple[tuple[str, ...], str]]:
    modalities = encoder.modalities
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
            f"retrieval needs two modalities, and {encoder.source.name} encodes "
            f"{', '.join(modalities)} only: name a run of method align, or two exports or "
            "perceptors"
        )
    if directions == "pairs":
        return [((a,), b) for a in modalities for b in modalities if a != b]
    return [(tuple(m for m in modalities if m != wanted), wanted) for wanted in modalities]


def _same_space(encoder: Encoder, ways: Sequence[tuple[tuple[str, ...], str]]) -> None:
    """Raise UserError where vectors that are compared differ in size."""
    used = {m for asked, wanted in ways for m in (*asked, wanted)}
    sizes = {m: len(encoder.blank(m)[1]) for m in encoder.modalities if m in used}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"'{m}' {size}" for m, size in sizes.items())
        raise UserError(
            f"embeddings differ in size ({told} numbers): they are not of one space; retrieve "
            "between encoders that were trained together"
        )


def _retrieved(
    encoded: Encoded, scorer: Scorer, asked: Sequence[str], wanted: str, pool: int, seed: int
) -> dict[str, Tensor]:
    rows = encoded.having([*asked, wanted])
    if not bool(rows.any()):
        raise UserError(
            f"no sample has all of {', '.join([*asked, wanted])}: choose other modalities"
        )
    units: dict[str, Tensor] = {m: encoded.unit[m][rows] for m in (*asked, wanted)}
    score = score_by(scorer, units, asked, wanted)
    count = int(rows.sum())
    with torch.no_grad():
        found = places_by(score, count, encoded.label[rows], width=len(asked)).values()
        return found | (values_in_pools(score, count, pool, seed) if pool else {})


def _means(table: Table, found: dict[str, dict[str, Tensor]], alike: bool) -> None:
    """Means over directions; with intervals where all directions have the same queries."""
    for name in next(iter(found.values())):
        held = [values[name] for values in found.values() if name in values]
        if alike:
            table.mean(f"mean/{name}", name, torch.stack(held).mean(dim=0), Of(combination="mean"))
        else:
            mean = sum(float(values.mean()) for values in held) / len(held)
            table.number(f"mean/{name}", mean, Of(combination="mean"))
