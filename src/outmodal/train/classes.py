"""The classes of a classifier beside those of the data set that it is asked about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outmodal.data.manifest import Manifest

_FEW = 12  # classes that a message lists


def difference(given: Sequence[str], trained: Sequence[str]) -> str | None:
    """Say how the classes of a data set differ from those that were trained on; None if not.

    >>> difference(["a", "b", "c"], ["a", "b"])
    'has the classes a, b, c (3), where a, b (2) were trained on'
    """
    if tuple(given) == tuple(trained):
        return None
    if len(given) == len(trained) > _FEW:
        at = next(i for i, (a, b) in enumerate(zip(given, trained, strict=True)) if a != b)
        return (
            f"has {len(given)} classes as were trained on, but calls class {at} '{given[at]}' "
            f"where that was '{trained[at]}'"
        )
    return f"has the classes {_listed(given)}, where {_listed(trained)} were trained on"


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
    return f"{few} ({len(names)})"


def among(logits: Tensor, manifest: Manifest) -> Tensor:
    """Logits [B, C], minus infinity for classes that the data set has none of (its `subset`)."""
    if manifest.subset is None:
        return logits
    there = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    there[list(manifest.subset)] = True
    return logits.masked_fill(~there, -torch.inf)


def subset_settings(manifest: Manifest) -> dict[str, str]:
    """What a record says of the classes that were chosen among."""
    if manifest.subset is None:
        return {}
    return {"chosen_among": f"the data set's {len(manifest.subset)} of {len(manifest.classes)}"}
