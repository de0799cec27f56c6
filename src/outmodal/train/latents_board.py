"""Latents of synergy runs on TensorBoard: their distances as scalars, and their points, for its
projector to lay out by t-SNE, UMAP or principal components."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outmodal.models.features import unit_norm

POINTS = 600
"""Points of each set at most."""

FOLDER = "latents"
"""Beside the run's own curves, which a report reads, and replaced by every evaluation."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Points:
    """A set of latents.

    Attributes:
        name: What they are.
        z: [N, d].
        label: [N] classes, -1 where unknown.
    """

    name: str
    z: Tensor
    label: Tensor


def write_board(
    board: Path,
    step: int,
    values: Mapping[str, float],
    sets: Sequence[Points],
    names: Sequence[str],
) -> None:
    """Write BOARD/latents: scalars "latents/NAME", and unit vectors with their set and class.

    A folder that cannot be written costs a warning only.

    Args:
        board: TensorBoard's folder of a run.
        step: Of the checkpoint.
        values: Numbers; those that are not finite are left out.
        sets: At least one, all of one size d.
        names: Of the classes.
    """
    from torch.utils.tensorboard import SummaryWriter

    try:
        shutil.rmtree(board / FOLDER, ignore_errors=True)
        with SummaryWriter(str(board / FOLDER)) as writer:
            for name, value in values.items():
                if math.isfinite(value):
                    writer.add_scalar(f"latents/{name}", value, step)
            z, rows = _drawn(sets, names)
            writer.add_embedding(z, rows, None, step, "latents", ["set", "class"])
    except OSError as error:
        _log.warning("cannot write %s: %s", board / FOLDER, error.strerror or error)


def _drawn(sets: Sequence[Points], names: Sequence[str]) -> tuple[Tensor, list[list[str]]]:
    """At most `POINTS` of each set, the same in every call: unit vectors, and what each is."""
    vectors: list[Tensor] = []
    rows: list[list[str]] = []
    for one in sets:
        places = np.arange(len(one.z))
        if len(places) > POINTS:
            places = np.sort(np.random.default_rng(0).choice(len(places), POINTS, replace=False))
        vectors.append(unit_norm(one.z[torch.from_numpy(places)].float()).cpu())
        numbers = one.label[torch.from_numpy(places)].tolist()
        rows += [[one.name, names[n] if n >= 0 else "unknown"] for n in numbers]
    return torch.cat(vectors), rows


__all__ = ["FOLDER", "POINTS", "Points", "write_board"]
