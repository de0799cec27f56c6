"""Evaluation of perceptors alone: what frozen encoders know of a data set without any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.data.batch import StreamSpec
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.stream import Loader, StreamConfig
from outmodal.errors import UserError
from outmodal.models.perceptors import Perceptor, PerceptorBase, load_perceptor
from outmodal.models.prompts import PromptTable, class_prompts
from outmodal.train.evaluation import Evaluation
from outmodal.train.retrieval import TILE, recall
from outmodal.train.zero_shot import (
    classification,
    nearest_classes,
    templates_for,
)


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
    names = tuple(p.modality for p in perceptors)
    root = str(dataset.root)
    config = StreamConfig(path=root, eval_split=split, batch=batch, workers=workers, cache_mb=0)
    spec = StreamSpec("evaluate", split, names, batch)
    e: dict[str, list[Tensor]] = {name: [] for name in names}
    present: dict[str, list[Tensor]] = {name: [] for name in names}
    label = []
    with Loader(dataset, {p.modality: p.transform for p in perceptors}, config) as loader:
        for part in loader.open_pass(spec):
            label.append(part.label[part.valid])
            for p in perceptors:
                e[p.modality].append(p.encode(part.x[p.modality][part.valid]).cpu())
                present[p.modality].append(part.present[p.modality][part.valid])
    return Features(
        {name: torch.cat(rows) for name, rows in e.items()},
        {name: torch.cat(rows) for name, rows in present.items()},
        torch.cat(label),
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
        device: Where to compute; None is the CPU.

    Returns:
        "top1", "top5", "mean_per_class" over the samples that have the modality and a class.
    """
    dataset.split(split)
    query, text = _sides(dataset, perceptors, device)
    _same_space(query, text)
    kind = dataset.modality(query.modality).kind
    names = dataset.manifest.classes
    chosen = tuple(templates) or templates_for(kind)
    table = PromptTable.build(text, class_prompts(names, chosen), each=len(chosen))
    made = split_features(dataset, split, [query], batch, workers)
    label = torch.where(made.present[query.modality], made.label, -1)
    best = nearest_classes(made.e[query.modality], table.vectors.cpu())
    metrics, per_class = classification(best, label, names)
    if not metrics:
        raise UserError(
            f"split '{split}' has no labelled sample with '{query.modality}': choose another split"
        )
    return Evaluation(metrics, int((label >= 0).sum()), per_class)


def retrieve(
    dataset: Dataset,
    perceptors: Sequence[PerceptorBase],
    *,
    split: str = "test",
    batch: int = 256,
    workers: int = 0,
    device: torch.device | None = None,
    tile: int = TILE,
) -> Evaluation:
    """Retrieval between two modalities, in both directions, among samples that have both.

    Args:
        dataset, split, batch, workers, device: See `classify`.
        perceptors: One for each of the two modalities, into one space.
        tile: See `recall`.

    Returns:
        "A_to_B/r1_instance" and so on, see `recall`.
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
    metrics: dict[str, float] = {}
    for q, g in ((a.modality, b.modality), (b.modality, a.modality)):
        found = recall(made.e[q][both], made.e[g][both], made.label[both], tile=tile)
        metrics |= {f"{q}_to_{g}/{name}": value for name, value in found.items()}
    return Evaluation(metrics, int(both.sum()), {})


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
    return Dataset(dataset.root, dataset.manifest.model_copy(update={"modalities": added})), name
