"""Evaluation of perceptors alone: what frozen encoders know of a data set without any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.data.manifest import Dataset, Modality
from outmodal.data.stream import StreamConfig
from outmodal.errors import UserError
from outmodal.models.perceptors import Perceptor, PerceptorBase, load_perceptor
from outmodal.models.prompts import PromptTable, class_prompts
from outmodal.train.classifying import classify_task
from outmodal.train.intervals import Bootstrap
from outmodal.train.representations import opened
from outmodal.train.results import Evaluation, Of, Table
from outmodal.train.retrieval import TILE, mean_cosine, places_by, score_by
from outmodal.train.sources import PerceptorSource
from outmodal.train.zero_shot import templates_for

PLAIN = Bootstrap()


@dataclass(frozen=True)
class Features:
    """What perceptors make of a split, in its order, on the CPU.

    Attributes:
        e: modality -> [N, d] unit vectors; rows without the modality are meaningless.
        present: modality -> [N] bool.
        label: [N] classes, -1 where a sample has none.
    """

    e: dict[str, Tensor]
    present: dict[str, Tensor]
    label: Tensor


def split_features(
    dataset: Dataset, split: str, perceptors: Sequence[Perceptor], batch: int, workers: int = 0
) -> Features:
    """Encode every sample of a split once."""
    config = StreamConfig(path=dataset.where, batch=batch, workers=workers, cache_mb=0)
    with opened(PerceptorSource(perceptors, dataset), config) as encoder:
        made = encoder.encode(split)
    return Features(
        {name: rows.cpu() for name, rows in made.unit.items()},
        {name: rows.cpu() for name, rows in made.present.items()},
        made.label.cpu(),
    )


def classify(
    dataset: Dataset,
    perceptors: Sequence[PerceptorBase],
    *,
    split: str = "test",
    templates: Sequence[str] = (),
    batch: int = 256,
    workers: int = 0,
    device: torch.device | None = None,
    bootstrap: Bootstrap = PLAIN,
) -> Evaluation:
    """Zero-shot classification by class names.

    Args:
        dataset: Data set with class names.
        perceptors: One of the modality to classify, and one of a text modality for the prompts;
            alone, a dual encoder or a released perceptor encodes the prompts with its own text
            side. Of two that read text, the second encodes the prompts.
        split: Split to classify.
        templates: What class names are put into, "a photo of a {}."; () is a set for the kind.
        batch: Samples encoded together.
        workers: Reading processes.
        device: Where the prompts are encoded; None is the CPU.
        bootstrap: Of the intervals.

    Returns:
        "top1", "top5", "mean_per_class" over the samples that have the modality and a class.
    """
    dataset.split(split)
    source = open_zero_shot(dataset, perceptors, templates, device)
    config = StreamConfig(path=dataset.where, batch=batch, workers=workers, cache_mb=0)
    with opened(source, config) as encoder:
        return classify_task(encoder, split, bootstrap)


def open_zero_shot(
    dataset: Dataset,
    perceptors: Sequence[PerceptorBase],
    templates: Sequence[str] = (),
    device: torch.device | None = None,
) -> PerceptorSource:
    """A perceptor with the data set's class names as its classifier; see `classify`."""
    query, text = _sides(dataset, perceptors, device)
    _same_space(query, text)
    kind = dataset.modality(query.modality).kind
    names = dataset.manifest.classes
    chosen = tuple(templates) or templates_for(kind)
    table = PromptTable.build(text, class_prompts(names, chosen), each=len(chosen))
    return PerceptorSource([query], dataset, table.vectors.cpu())


def open_perceptors(
    dataset: Dataset, perceptors: Sequence[PerceptorBase], device: torch.device | None = None
) -> PerceptorSource:
    """Perceptors as encoders of a data set."""
    return PerceptorSource([_load(cfg, dataset, device) for cfg in perceptors], dataset)


def retrieve(
    dataset: Dataset,
    perceptors: Sequence[PerceptorBase],
    *,
    split: str = "test",
    batch: int = 256,
    workers: int = 0,
    device: torch.device | None = None,
    tile: int = TILE,
    bootstrap: Bootstrap = PLAIN,
) -> Evaluation:
    """Retrieval between two modalities, in both directions, among samples that have both.

    Args:
        dataset, split, batch, workers, device: See `classify`.
        perceptors: One for each of the two modalities, into one space.
        tile: See `recall_by`.
        bootstrap: Intervals are over queries.

    Returns:
        "A_to_B/r1_instance" and so on, see `recall_by`.
    """
    dataset.split(split)
    if len(perceptors) != 2:
        raise UserError(
            f"retrieval needs two perceptors, and got {len(perceptors)}: name one for each of the "
            "two modalities"
        )
    a, b = (_load(cfg, dataset, device) for cfg in perceptors)
    if a.modality == b.modality:
        raise UserError(f"both perceptors read '{a.modality}': retrieval is between two modalities")
    _same_space(a, b)
    made = split_features(dataset, split, [a, b], batch, workers)
    both = made.present[a.modality] & made.present[b.modality]
    if not bool(both.any()):
        raise UserError(
            f"no sample of split '{split}' has both '{a.modality}' and '{b.modality}': choose "
            "another split, or other modalities"
        )
    table, units = Table(bootstrap), {m: e[both] for m, e in made.e.items()}
    for q, g in ((a.modality, b.modality), (b.modality, a.modality)):
        score = score_by(mean_cosine, units, (q,), g)
        places = places_by(score, int(both.sum()), made.label[both], tile)
        for name, values in places.values().items():
            table.mean(f"{q}_to_{g}/{name}", name, values, Of(combination=f"{q}_to_{g}"))
    return table.done(int(both.sum()))


def _load(cfg: PerceptorBase, dataset: Dataset, device: torch.device | None) -> Perceptor:
    perceptor = load_perceptor(cfg, dataset)
    return perceptor if device is None else perceptor.to(device)


def _same_space(a: Perceptor, b: Perceptor) -> None:
    if a.dim != b.dim:
        raise UserError(
            f"{a.identity} gives {a.dim} numbers and {b.identity} {b.dim}: they are not of one "
            "space; name two perceptors that were trained together"
        )


def _sides(
    dataset: Dataset, configs: Sequence[PerceptorBase], device: torch.device | None
) -> tuple[Perceptor, Perceptor]:
    """The perceptors of samples and of prompts."""
    readable, name = _with_text(dataset)
    if len(configs) not in (1, 2):
        raise UserError(
            "classification needs one perceptor, or a second one for the prompts, and got "
            f"{len(configs)}"
        )
    first, *others = (_load(cfg, readable, device) for cfg in configs)
    reads_text = [readable.modality(p.modality).kind == "text" for p in (first, *others)]
    if not others:
        own = first if reads_text[0] else _own_text_side(configs[0], name, readable, device)
        return first, own
    if not any(reads_text):
        raise UserError(
            f"neither '{first.modality}' nor '{others[0].modality}' is text: the second "
            f"perceptor encodes the prompts; name it as {name}=FOLDER"
        )
    return (first, others[0]) if reads_text[1] else (others[0], first)


def _own_text_side(
    cfg: PerceptorBase, name: str, readable: Dataset, device: torch.device | None
) -> Perceptor:
    try:
        return _load(cfg.for_text(name), readable, device)
    except UserError as error:
        raise UserError(
            f"no text side to encode the prompts ({error}): name a second perceptor, "
            f"{name}=FOLDER, into the same space"
        ) from None


def _with_text(dataset: Dataset) -> tuple[Dataset, str]:
    """The data set itself, or with a text modality that no sample has; and that one's name."""
    specs = dataset.manifest.modalities
    name = next((name for name, spec in specs.items() if spec.kind == "text"), "")
    if name:
        return dataset, name
    name = "text" if "text" not in specs else "class-names"
    added = {**specs, name: Modality(kind="text", ext="txt")}
    return dataset.with_manifest(dataset.manifest.model_copy(update={"modalities": added})), name
