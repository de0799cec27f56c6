"""Corruptions that a data set holds ready made, as ImageNet-C does: a split for each cell.

The corruption error CE of a network is its error over five severities divided by AlexNet's, and
mCE the mean of CE over fifteen corruptions (Hendrycks and Dietterich, ICLR 2019). Pictures are
read whole, without the crop of other evaluations: they were cropped when they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from outmodal.data.corruptions.imagenet_c import ALEXNET, SEVERITIES, cells
from outmodal.data.picture import ImageInput
from outmodal.data.transform import Transform
from outmodal.errors import UserError, nearest
from outmodal.train.classes import subset_settings
from outmodal.train.classifying import classifier_of, labelled_rows
from outmodal.train.intervals import Bootstrap
from outmodal.train.representations import Encoder
from outmodal.train.results import Evaluation, Of, Table

Hits = Mapping[str, Mapping[int, Tensor]]
"""Corruption -> severity -> [N] hits."""


def published_task(
    encoder: Encoder,
    *,
    names: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    most: int = 0,
    bootstrap: Bootstrap | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Accuracy on each cell, CE of each corruption with five severities, mCE of all fifteen.

    Args:
        encoder: With a classifier, on a data set that has cells.
        names, severities: Cells to evaluate; () is every corruption that is there.
        most: Samples of each cell at most; 0 is all.
        bootstrap: Of the intervals.
        progress: Called with (cells done, in all).

    Returns:
        "NAME/3/top1", "NAME/mean/top1", and as ratios (1 is AlexNet's error) "NAME/ce" and "mce".
        Intervals of figures over severities are drawn over pictures, where all cells have the same
        ones; else there are none.

    Raises:
        UserError: There is no classifier, it has other classes, or a cell is not there.
    """
    modality = classifier_of(encoder)
    wanted = _wanted(encoder, names, severities)
    changed = whole_pictures(encoder, modality)
    total, done, labels = sum(map(len, wanted.values())), 0, []
    hits: dict[str, dict[int, Tensor]] = {}
    for name, held in wanted.items():
        for severity, split in held.items():
            if progress is not None:
                progress(done, total)
            encoded = encoder.encode(split, [modality], changed=changed, most=most)
            rows = labelled_rows(encoded, modality, split)
            assert encoded.best is not None
            labels.append(encoded.label[rows].cpu())
            hit = encoded.best[rows][:, 0] == encoded.label[rows]
            hits.setdefault(name, {})[severity] = hit.double().cpu()
            done += 1
    table = Table(bootstrap or Bootstrap())
    paired = all(torch.equal(labels[0], other) for other in labels)
    _rows(table, modality, hits, paired)
    manifest = encoder.dataset.manifest
    return table.done(
        sum(map(len, labels)),
        **subset_settings(manifest),
        severities=sorted({s for held in wanted.values() for s in held}),
        note=_note(hits),
    )


def whole_pictures(encoder: Encoder, modality: str) -> dict[str, Transform]:
    """The modality's transform without a crop, where it has one."""
    config = encoder.source.inputs[modality].config
    if not isinstance(config, ImageInput) or config.crop == "none":
        return {}
    whole = config.model_copy(update={"crop": "none", "crop_fraction": 1.0})
    return {modality: whole.build(encoder.dataset, modality, None)}


def corruption_errors(errors: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """CE of each corruption with five severities and a published reference, from its errors.

    >>> corruption_errors({"fog": dict.fromkeys(range(1, 6), 0.819324), "snow": {1: 0.5}})
    {'fog': 1.0}
    """
    return {
        name: sum(held.values()) / len(SEVERITIES) / ALEXNET[name]
        for name, held in errors.items()
        if name in ALEXNET and set(held) == set(SEVERITIES)
    }


def mean_error(ce: Mapping[str, float]) -> float | None:
    """mCE from all fifteen CE; None where one of them is missing."""
    return sum(ce.values()) / len(ALEXNET) if set(ce) == set(ALEXNET) else None


def _wanted(
    encoder: Encoder, names: Sequence[str], severities: Sequence[int]
) -> dict[str, dict[int, str]]:
    held = cells(encoder.dataset.manifest.splits)
    for name in names:
        if name not in held:
            raise UserError(
                f"{encoder.dataset.where} has no corruption '{name}'{nearest(name, held)}"
            )
    wanted = {
        name: {s: split for s, split in found.items() if s in severities}
        for name, found in held.items()
        if not names or name in names
    }
    wanted = {name: found for name, found in wanted.items() if found}
    if not wanted:
        asked = " ".join(map(str, severities))
        raise UserError(
            f"{encoder.dataset.where} has no cell of --severities {asked}: give some of those that "
            "its splits name"
        )
    return wanted


def _rows(table: Table, modality: str, hits: Hits, paired: bool) -> None:
    for name, held in hits.items():
        for severity, values in held.items():
            of = Of(modality, corruption=name, severity=severity)
            table.mean(f"{name}/{severity}/top1", "top1", values, of)
    errors = {
        name: {s: float(1.0 - values.mean()) for s, values in held.items()}
        for name, held in hits.items()
    }
    ce = corruption_errors(errors)
    over: dict[str, Tensor] = {}
    for name, held in hits.items():
        of = Of(modality, corruption=name)
        mean = sum(1.0 - e for e in errors[name].values()) / len(held)
        each = torch.stack(list(held.values())).mean(dim=0) if paired else None
        _add(table, f"{name}/mean/top1", mean, each, of)
        if name in ce:
            over[name] = (1.0 - each) / ALEXNET[name] if each is not None else torch.empty(0)
            _add(table, f"{name}/ce", ce[name], over[name] if paired else None, of)
    mce = mean_error(ce)
    if mce is not None:
        each = torch.stack(list(over.values())).mean(dim=0) if paired else None
        _add(table, "mce", mce, each, Of(modality, corruption="mean"))


def _add(table: Table, name: str, value: float, each: Tensor | None, of: Of) -> None:
    """A number with an interval where its samples are paired."""
    if each is None:
        table.number(name, value, of)
    else:
        table.mean(name, name.rpartition("/")[2], each, of)


def _note(hits: Hits) -> str:
    missing = [name for name in ALEXNET if set(hits.get(name, {})) != set(SEVERITIES)]
    if not missing:
        return "CE and mCE are relative to AlexNet's published errors; 1 is AlexNet"
    return f"no mCE: {len(missing)} of its 15 corruptions are not complete ({missing[0]} for one)"
