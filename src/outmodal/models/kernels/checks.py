"""What the losses over pairs require of embeddings, said in the user's terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.kernels.exchange import LOCAL, Exchange

_ROWS = 8192
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the squared length of a vector whose entries were rounded; 1e-3 in other precisions."""


def check_shapes(embeddings: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse embeddings that are not all [n, d] floats of the same n and d. Costs nothing.

    Raises:
        UserError: Names the modality that differs.
    """
    first = embeddings[0]
    for e, name in zip(embeddings, names, strict=True):
        if e.dim() != 2 or not e.is_floating_point():
            raise UserError(
                f"modality '{name}': embeddings must be a floating [rows, dim] tensor, got "
                f"{e.dtype} {list(e.shape)}"
            )
        for axis, what in ((0, "rows"), (1, "dimensions")):
            if e.shape[axis] != first.shape[axis]:
                raise UserError(
                    f"modality '{name}' has {e.shape[axis]} {what}, '{names[0]}' has "
                    f"{first.shape[axis]}: row n of every modality must be sample n; mark samples "
                    "that lack a modality with `present`, and give all heads one output size"
                )


def check_mask(mask: Tensor, rows: int, name: str) -> None:
    """Refuse a mask of a modality's rows that is not [rows] bool. Costs nothing.

    Raises:
        UserError: Names the modality.
    """
    if mask.dtype is not torch.bool or mask.shape != (rows,):
        raise UserError(
            f"modality '{name}': `present` must be bool [{rows}], one for each row, got "
            f"{mask.dtype} {list(mask.shape)}"
        )


def check_units(
    embeddings: Sequence[Tensor],
    names: Sequence[str],
    present: Sequence[Tensor | None] | None = None,
    exchange: Exchange = LOCAL,
) -> None:
    """Refuse embeddings with a present row that is not a finite unit vector. Collective.

    Reads every embedding once, and on a GPU waits for it once: not for every step. All ranks
    refuse where one has such a row, so that none is left waiting for the others.

    Args:
        embeddings: [n, d] each.
        names: What to call them.
        present: [n] bool each, rows that count; None where all do.
        exchange: Of the ranks that check together.

    Raises:
        UserError: Names the modality, a row of it (where this rank holds one), and the remedy.
    """
    masks = present if present is not None else [None] * len(embeddings)
    wrong = [_wrong(e, mask) for e, mask in zip(embeddings, masks, strict=True)]
    everywhere = exchange.sum(torch.stack([w.sum() for w in wrong])).tolist()
    if not any(everywhere):
        return
    for e, bad, name in zip(embeddings, wrong, names, strict=True):
        if bool(bad.any()):
            raise UserError(_complaint(e, bad, name))
    name, count = next((n, c) for n, c in zip(names, everywhere, strict=True) if c)
    raise UserError(
        f"modality '{name}': {count} embeddings of other ranks are no finite unit vectors; the "
        "messages of those ranks name a row and the remedy"
    )


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """[n] dot products of the rows of [n, d] and [n, d] in at least fp32, some rows at a time."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    out = torch.empty(a.shape[0], dtype=dtype, device=a.device)
    for i in range(0, a.shape[0], _ROWS):
        here = slice(i, i + _ROWS)
        torch.sum(a[here].to(dtype) * b[here].to(dtype), 1, out=out[here])
    return out


def _wrong(e: Tensor, mask: Tensor | None) -> Tensor:
    """[n] bool, present rows that are no unit vectors; NaN is not close to 1 either."""
    e = e.detach()
    tolerance = _TOLERANCE.get(e.dtype, 1e-3)
    wrong = ~((row_dots(e, e) - 1).abs() <= tolerance)
    return wrong if mask is None else wrong & mask


def _complaint(e: Tensor, bad: Tensor, name: str) -> str:
    row = int(bad.nonzero()[0])
    vector = e.detach()[row].float()
    where = f"modality '{name}': the embedding of row {row} ({int(bad.sum())} such of {len(e)})"
    if not bool(torch.isfinite(vector).all()):
        return (
            f"{where} has NaN or infinite entries: lower the learning rate, clip gradients, or "
            "look for such values in the inputs of this modality"
        )
    return (
        f"{where} has length {float(vector.norm()):.4g}, unit vectors are required: divide the "
        "embeddings by their length, e.g. torch.nn.functional.normalize(e, dim=-1), in fp32"
    )
