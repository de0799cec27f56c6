"""Zero-shot classification: the class whose prompts lie nearest, without any training.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML
2021): every class name is put into several templates, and the class is the mean of their vectors
(`models.prompts`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TEMPLATES: dict[str, tuple[str, ...]] = {
    "image": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "video": ("a video of {}.", "a video of a person {}.", "a photo of {}."),
    "audio": ("this is a sound of {}.", "a recording of {}.", "the sound of {}."),
}
"""Kind of a modality -> templates; the image's are the seven that CLIP's authors chose for
ImageNet among eighty."""
OTHER_TEMPLATES = ("{}", "this is {}.", "an example of {}.")
_BEST = 5
_TILE = 1 << 22


def templates_for(kind: str) -> tuple[str, ...]:
    """Templates for a kind of modality."""
    return TEMPLATES.get(kind, OTHER_TEMPLATES)


def nearest_classes(
    e: Tensor, classes: Tensor, tile: int = _TILE, subset: Sequence[int] | None = None
) -> Tensor:
    """[N, min(5, C)] the best classes of each row by inner product, best first.

    Of equal similarities the class with the smaller number comes first.

    Args:
        e: [N, d] unit vectors.
        classes: [C, d] unit vectors.
        tile: Similarities that exist at a time; at least one row of them does.
        subset: The classes to choose among; None for all.
    """
    rows = max(1, tile // len(classes))
    numbers = torch.arange(len(classes)) if subset is None else torch.tensor(sorted(subset))
    numbers = numbers.to(e.device)
    table = classes if subset is None else classes[numbers]
    best = [
        (part @ table.T).sort(dim=1, descending=True, stable=True).indices[:, :_BEST]
        for part in torch.split(e, rows)
    ]
    return numbers[torch.cat(best)]


def classification(
    best: Tensor, truth: Tensor, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return metrics and class -> accuracy of the samples with a known class.

    Args:
        best: [N, k] classes by rank, best first.
        truth: [N] classes, -1 where unknown.
        names: Class names.

    Returns:
        "top1", "top5" and "mean_per_class", the mean of the classes' accuracies. Empty where no
        sample has a class; classes without a sample have no accuracy.
    """
    known = truth >= 0
    hits = (best[known] == truth[known][:, None]).double()
    if not len(hits):
        return {}, {}
    first, members = hits[:, 0], truth[known]
    per_class = {
        name: float(first[members == c].mean())
        for c, name in enumerate(names)
        if bool((members == c).any())
    }
    metrics = {
        "top1": float(first.mean()),
        "top5": float(hits.sum(dim=1).mean()),
        "mean_per_class": sum(per_class.values()) / len(per_class),
    }
    return metrics, per_class
