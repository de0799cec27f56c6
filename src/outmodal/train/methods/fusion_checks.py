"""What fusion of modalities asks of a run and its data, and how it says that it is not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.batch import StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.train.methods.base import Context
from outmodal.train.methods.labelled import check_classes

LOOKED_AT = 256
"""Training samples that a look before training reads, unless it finds something wrong."""


def read_modalities(context: Context, named: Sequence[str]) -> tuple[str, ...]:
    """`method.modalities`; where it is empty every learner's, else every vector.

    Raises:
        UserError: One that is neither learned nor a vector.
    """
    names = tuple(named) or tuple(context.learners) or tuple(context.dims)
    known = {*context.learners, *context.dims}
    for m in names:
        if m not in known:
            raise UserError(
                f"method.modalities has '{m}' but no learner encodes it and it is no vector of "
                f"the data set{nearest(m, known)}"
            )
    return names


def fused_modalities(
    context: Context, named: Sequence[str], scaled: Sequence[str], least: int = 2
) -> tuple[str, ...]:
    """What a run fuses, in order.

    Args:
        context: The run.
        named: `method.modalities`.
        scaled: The modalities of `method.lr_scale`.
        least: Fewest that the method makes sense with.

    Raises:
        UserError: Fewer than `least`, one twice, or one that is neither learned nor a vector; a
            learning rate of one that is not fused.
    """
    names = read_modalities(context, named)
    if len(set(names)) < len(names):
        raise UserError(f"method.modalities names one of {', '.join(names)} twice: leave one out")
    if len(names) < least:
        raise UserError(
            f"this method fuses {least} or more modalities, got {', '.join(names) or '-'}: add "
            "entries to `learners`, or name more, vectors of the data set too, in "
            "method.modalities"
        )
    for m in scaled:
        if m not in names:
            raise UserError(f"method.lr_scale has '{m}', which is not fused{nearest(m, names)}")
    return names


def require_classes(context: Context) -> None:
    """Raise UserError unless each of two or more classes has a labelled training sample."""
    labels, split = context.labels[context.train_split], context.train_split
    check_classes(context)
    counts = np.bincount(labels[labels >= 0], minlength=len(context.classes))
    if not counts.any():
        raise UserError(
            f"no sample of split '{split}' has a label, and this method learns from labels: add "
            "`.cls` members, or train method align, which needs none"
        )
    empty = [name for name, n in zip(context.classes, counts, strict=True) if n == 0]
    if empty:
        raise UserError(
            f"no labelled sample of class {', '.join(repr(c) for c in empty)} in split '{split}', "
            "so it cannot be learned: add samples, or remove the class from the data set"
        )


def spread(count: int) -> NDArray[np.int64]:
    """Places of at most 256 of `count` samples at even distances."""
    kept = min(count, LOOKED_AT)
    return np.arange(kept, dtype=np.int64) * count // max(1, kept)


def look(context: Context, modalities: tuple[str, ...], see: Callable[[StreamSpec], None]) -> None:
    """Let `see` look at a few training samples, and at all of them where it refuses the few."""
    count = len(context.labels[context.train_split])
    spec = StreamSpec("look", context.train_split, modalities, context.batch, spread(count))
    try:
        see(spec)
    except UserError:
        if count <= LOOKED_AT:
            raise
        see(replace(spec, select=None))


def require_samples(presence: Tensor, least: int, modalities: Sequence[str]) -> None:
    """Raise UserError where none of the samples, [n, M] bool, has so many of the modalities."""
    if bool((presence.sum(dim=1) >= least).any()):
        return
    wanted = "all" if least == len(modalities) and least > 2 else str(least)
    raise UserError(
        f"none of the {len(presence)} training samples has {wanted} of "
        f"{', '.join(modalities)}, and this learns from samples that pair modalities: use a paired "
        "data set, or a method that needs no pairs: ume_mma without complete_epochs, cox with "
        "setting unsup, erm for one modality"
    )
