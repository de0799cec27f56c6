"""One-against-all contrastive losses of two to six modalities, without a matrix of all pairs.

Every modality is the anchor in turn: its vector of sample n is scored against the group that the
other modalities of sample n' form, for all n', and the own group has to win.

- projection: length of the anchor's projection on the group's subspace (OVA-IB, Li et al., arXiv
  2605.29900, eqs. 9 to 11; the negatives' own subspaces receive the anchor's vector).
- volume: minus the volume that anchor and group span (GRAM, Cicchetti et al., ICLR 2025).
- area: minus twice the squared area of the triangle of three vectors, as the released code of
  TRIANGLE has it (Cicchetti et al., NeurIPS 2025), whose paper takes the root.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from outmodal.errors import UserError, nearest
from outmodal.models.kernels.checks import check_shapes, check_units
from outmodal.models.kernels.dispatch import Impl, choose
from outmodal.models.kernels.exchange import LOCAL, Exchange
from outmodal.models.kernels.nce import nce
from outmodal.models.kernels.ova_anchor import LOST, RANGES, TOP, Anchor, AnchorLoss
from outmodal.models.kernels.ova_basis import Groups, combine, min_gram_eigenvalue
from outmodal.models.kernels.ova_reference import ova_reference
from outmodal.models.kernels.ova_shared import SharedLoss, can_share
from outmodal.models.kernels.ova_tiled import Form

__all__ = ["Form", "group_scores", "min_gram_eigenvalue", "ova"]

MOST_MODALITIES = 6


def ova(
    embeddings: Sequence[Tensor],
    scale: Tensor | float,
    *,
    score: Form = "projection",
    anchors: Sequence[int] | None = None,
    both: bool = False,
    present: Tensor | None = None,
    ridge: float = 1e-8,
    ridge_floor: float = 1e-5,
    gram_dtype: torch.dtype = torch.float64,
    exclude_positive: bool = False,
    smoothing: float = 0.0,
    signed_pair: bool = True,
    exchange: Exchange = LOCAL,
    impl: Impl = "auto",
    names: Sequence[str] = (),
    check: bool = True,
) -> Tensor:
    """Mean over all anchors of all samples of their contrastive loss.

    Logits are scale * score; products and sums are taken in fp32 whatever the inputs' precision
    (fp64 for fp64). All options must be equal on all ranks; row counts may differ.

    A sample counts for the anchors it has: modality m of sample n is an anchor, and its group a
    candidate of m's other anchors, where m and at least one other modality are present (for the
    area, all three). A modality that is present in no sample of the global batch thus has no part
    in the loss and gets a gradient of exact zeros; so has a batch without any anchor, whose loss
    is 0. An anchor without negatives (one sample) has loss 0.

    Args:
        embeddings: M tensors [n, d] of unit vectors, M from 2 to 6; row n is sample n.
        scale: Inverse temperature > 0; a tensor of one element receives its gradient.
        score: See above; "area" is for M = 3.
        anchors: Which of the embeddings are anchors; None: each of them, in turn.
        both: Mean with the other direction: every group against the anchors of all samples.
        present: [n, M] bool; what is absent is never read. A mask on all ranks or on none.
        ridge: Added to the diagonal of every group's Gram matrix.
        ridge_floor: Least ridge, so that groups whose vectors agree have a bounded gradient. A
            ridge of 0 or below the precision of `gram_dtype` is no protection.
        gram_dtype: Precision of Gram matrices and their factors, float32 or float64.
        exclude_positive: Leave the positive out of the denominator.
        smoothing: In [0, 1): label smoothing over the candidates.
        signed_pair: With M = 2, score by the cosine instead of its absolute value.
        exchange: Brings the columns of other ranks.
        impl: See `dispatch.choose`.
        names: The modalities, for errors.
        check: Look for rows that are no finite unit vectors: reads all inputs once and, on a GPU,
            waits for it once. Without it such rows give garbage, up to infinity.

    Returns:
        Scalar: `size * (sum over this rank's anchors) / (number of anchors of all ranks)`, so that
        the mean over ranks is the loss of the global batch, and so is its gradient's.

    Raises:
        UserError: M out of range, shapes that differ, options out of range, and with `check` rows
            that are no unit vectors (on all ranks where one has them) or a tensor of a scale
            that is no positive number.
    """
    names = tuple(names) or tuple(f"{m}" for m in range(len(embeddings)))
    _check_arguments(embeddings, names, score, present, smoothing, gram_dtype)
    _check_scale(scale, check)
    if check:
        masks = None if present is None else list(present.unbind(1))
        check_units(embeddings, names, masks, exchange)
    facing = _facing(anchors, names)
    if len(embeddings) == 2 and score == "projection" and signed_pair:
        pair = [embeddings[i] for i in (facing[0], 1 - facing[0])]
        turns = both or len(facing) == 2  # the second anchor's rows are the first one's columns
        return _pair(pair, scale, turns, present, exclude_positive, smoothing, exchange, impl)
    options: dict[str, Any] = {
        "form": score,
        "both": both,
        "exclude_positive": exclude_positive,
        "smoothing": smoothing,
        "exchange": exchange,
    }
    ridge = max(ridge, ridge_floor)
    with torch.autocast(embeddings[0].device.type, enabled=False):
        return _mean(embeddings, scale, facing, present, ridge, gram_dtype, impl, options)


def _mean(
    embeddings: Sequence[Tensor],
    scale: Tensor | float,
    facing: Sequence[int],
    present: Tensor | None,
    ridge: float,
    gram_dtype: torch.dtype,
    impl: Impl,
    options: dict[str, Any],
) -> Tensor:
    """The loss of checked arguments; options are those of `Anchor`."""
    kept = _present_only(embeddings, present)
    live = _anchors(present, options["form"])
    counts = _counts(live, kept, options["exchange"])
    dtype = torch.promote_types(kept[0].dtype, torch.float32)
    s = torch.as_tensor(scale, device=kept[0].device).to(dtype).reshape(())
    how = choose(impl, *kept)
    if how == "reference":
        options |= {"ridge": ridge, "gram_dtype": gram_dtype}
        wide = [e.to(dtype) for e in kept]
        total = ova_reference(wide, s, anchors=facing, present=present, live=live, **options)
    else:
        options |= {
            "certain": _certain(scale, options["form"]),
            "half": how == "triton",
            "primitives": importlib.import_module(f"outmodal.models.kernels.ova_{how}"),
        }
        anchors = [
            Anchor(
                index=m,
                live=None if live is None else live[:, m].contiguous(),
                groups=Groups(_without(present, m), options["form"], ridge, gram_dtype),
                candidates=counts[m],
                **options,
            )
            for m in facing
        ]
        total = _total(anchors, s, kept)
    size: int = options["exchange"].size
    return size * total / counts[list(facing)].sum().clamp(min=1).to(dtype)


def _total(anchors: Sequence[Anchor], scale: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Sum of this rank's losses: of all anchors at once where products can be shared."""
    if can_share(anchors, embeddings):
        shared: Tensor = SharedLoss.apply(anchors, scale, *embeddings)  # type: ignore[no-untyped-call]
        return shared
    total = scale.new_zeros(())
    for anchor in anchors:
        total = total + AnchorLoss.apply(anchor, scale, *embeddings)  # type: ignore[no-untyped-call]
    return total


def _pair(
    pair: Sequence[Tensor],
    scale: Tensor | float,
    both: bool,
    present: Tensor | None,
    exclude_positive: bool,
    smoothing: float,
    exchange: Exchange,
    impl: Impl,
) -> Tensor:
    """Two modalities scored by their cosine: plain nce."""
    return nce(
        pair[0],
        pair[1],
        scale,
        both=both,
        present=None if present is None else present.all(1),
        exclude_positive=exclude_positive,
        smoothing=smoothing,
        exchange=exchange,
        impl=impl,
        check=False,
    )


def group_scores(
    anchor: Tensor,
    rest: Sequence[Tensor],
    *,
    score: Form = "projection",
    present: Tensor | None = None,
    ridge: float = 1e-8,
    ridge_floor: float = 1e-5,
    gram_dtype: torch.dtype = torch.float64,
    signed_pair: bool = True,
) -> Tensor:
    """Score of every anchor with every group, as the loss takes it; larger is better.

    For retrieval the anchor is a query and the groups are candidates, or the groups are queries
    and the anchors candidates, then of `group_scores(candidates, queries).T`. Memory is that of
    the result and J products of its size: call it on chunks.

    Args:
        anchor: [A, d] unit vectors.
        rest: J tensors [B, d] of unit vectors, the groups; J from 1 to 5, 2 for the area.
        score, ridge, ridge_floor, gram_dtype, signed_pair: As for `ova`.
        present: [B, J] bool, what of the groups there is; for the area, all. None: all.

    Returns:
        [A, B] in fp32 (fp64 for fp64): the projection's length in [0, 1] (a cosine for J = 1 with
        signed_pair), or minus the volume, or minus twice the squared area.

    Raises:
        UserError: Shapes that differ, J out of range.
    """
    if not 1 <= len(rest) < MOST_MODALITIES or (score == "area" and len(rest) != 2):
        wanted = "2" if score == "area" else f"1 to {MOST_MODALITIES - 1}"
        raise UserError(f"group_scores: score '{score}' needs {wanted} vectors, got {len(rest)}")
    check_shapes(rest, [f"{j}" for j in range(len(rest))])
    if anchor.dim() != 2 or anchor.shape[1] != rest[0].shape[1]:
        raise UserError(
            f"group_scores: anchors have shape {list(anchor.shape)}, the groups' vectors "
            f"{list(rest[0].shape)}: all must be [rows, dim] of one dim"
        )
    with torch.autocast(anchor.device.type, enabled=False):
        kept = _present_only(rest, present)
        basis, gain = Groups(present, score, max(ridge, ridge_floor), gram_dtype).basis(kept)
        z = anchor.to(basis.dtype)
        if len(rest) == 1 and score == "projection" and signed_pair:
            return z @ kept[0].to(basis.dtype).T
        products = torch.stack([z @ basis[:, j].T for j in range(len(rest))], dim=-1)
        return combine(products, gain, score)


def _facing(anchors: Sequence[int] | None, names: Sequence[str]) -> tuple[int, ...]:
    """Places of the modalities that are anchors."""
    if anchors is None:
        return tuple(range(len(names)))
    known = set(range(len(names)))
    if not anchors or not set(anchors) <= known or len(set(anchors)) != len(anchors):
        raise UserError(
            f"anchors: expected different places from 0 to {len(names) - 1} in "
            f"({', '.join(names)}), got {list(anchors)}"
        )
    return tuple(anchors)


def _present_only(embeddings: Sequence[Tensor], present: Tensor | None) -> list[Tensor]:
    """Zeros where absent, whatever stood there."""
    if present is None:
        return list(embeddings)
    return [
        torch.where(mask[:, None], e, torch.zeros_like(e))
        for e, mask in zip(embeddings, present.unbind(1), strict=True)
    ]


def _anchors(present: Tensor | None, score: Form) -> Tensor | None:
    """[n, M] bool, which modalities of a sample are anchors."""
    if present is None:
        return None
    least = 3 if score == "area" else 2
    return present & (present.sum(1, keepdim=True) >= least)


def _counts(live: Tensor | None, embeddings: Sequence[Tensor], exchange: Exchange) -> Tensor:
    """[M] numbers of anchors on all ranks, int64."""
    n, device = len(embeddings[0]), embeddings[0].device
    if live is None:
        return exchange.sum(torch.full((len(embeddings),), n, device=device))
    return exchange.sum(live.sum(0))


def _without(present: Tensor | None, m: int) -> Tensor | None:
    """[n, M-1]: the mask of the others."""
    if present is None:
        return None
    return torch.cat([present[:, :m], present[:, m + 1 :]], dim=1)


def _certain(scale: Tensor | float, score: Form) -> bool:
    """Whether no sum can underflow; False where finding out would wait for a device."""
    if isinstance(scale, Tensor) and scale.device.type != "cpu":
        return False
    known = float(scale.detach()) if isinstance(scale, Tensor) else scale
    low, high = (known * end for end in RANGES[score])
    return low - max((low + high) / 2, high - TOP) > math.log(LOST) + 1


def _check_scale(scale: Tensor | float, look: bool) -> None:
    """The value of a tensor only where it may be waited for."""
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            raise UserError(f"scale: expected one element, got shape {list(scale.shape)}")
        if not look:
            return
        scale = float(scale.detach())
    if not 0 < scale < math.inf:
        raise UserError(
            f"scale: expected a positive finite number (1 / temperature), got {scale}: a learned "
            "one should be the exponential of its parameter, bounded"
        )


def _check_arguments(
    embeddings: Sequence[Tensor],
    names: Sequence[str],
    score: str,
    present: Tensor | None,
    smoothing: float,
    gram_dtype: torch.dtype,
) -> None:
    count = len(embeddings)
    listed = ", ".join(names)
    if score not in get_args(Form):
        raise UserError(f"unknown score '{score}'{nearest(score, get_args(Form))}")
    if not 2 <= count <= MOST_MODALITIES:
        raise UserError(
            f"modalities ({listed}): one-against-all losses take 2 to {MOST_MODALITIES} of them, "
            f"got {count}; add or leave out modalities in the objective"
        )
    if score == "area" and count != 3:
        raise UserError(
            f"modalities ({listed}): the area of a triangle needs exactly 3, got {count}; use "
            "score 'volume' or 'projection' for other numbers"
        )
    if len(names) != count:
        raise UserError(f"names: {len(names)} ({listed}) for {count} embeddings; give one each")
    check_shapes(embeddings, names)
    shape = (len(embeddings[0]), count)
    if present is not None and (present.dtype is not torch.bool or present.shape != shape):
        raise UserError(
            f"present: expected bool {list(shape)} (samples, modalities), got {present.dtype} "
            f"{list(present.shape)}"
        )
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing: expected a number in [0, 1), got {smoothing}")
    if gram_dtype not in (torch.float32, torch.float64):
        raise UserError(f"gram_dtype: expected float32 or float64, got {gram_dtype}")
