"""Contrastive cross-entropy between two sets of unit vectors, without the matrix of all pairs.

InfoNCE of van den Oord et al. (arXiv 1807.03748, eq. 4) in both directions as in CLIP (Radford et
al., arXiv 2103.00020, fig. 3), DCL's denominator without the positive (Yeh et al., arXiv
2110.06848, eq. 5), and the pairwise sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343, sec.
3.2). The sums run over negatives only: with lse the log-sum-exp of a row's negative logits, its
loss is softplus(lse - positive), which stays exact where the loss is close to 0.

One static shift serves all exponentials, so that one pass yields sums of rows and of columns, and
sums of several ranks are plain sums. The pass is `nce_tiled`'s or `nce_triton`'s; what is done with
its sums is here, once.
"""

from __future__ import annotations

import importlib
import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from outmodal.errors import UserError, nearest
from outmodal.models.kernels.checks import check_mask, check_shapes, check_units
from outmodal.models.kernels.dispatch import Impl, choose
from outmodal.models.kernels.exchange import LOCAL, Exchange
from outmodal.models.kernels.nce_reference import nce_reference
from outmodal.models.kernels.nce_sigmoid import Sigmoid, SigmoidLoss
from outmodal.models.kernels.nce_softmax import Softmax, SoftmaxLoss

Form = Literal["softmax", "sigmoid"]
_SAFE_SCALE = 57.0
"""Up to here exp(-scale) is too large for any sum of negatives to be lost in fp32."""


def nce(
    q: Tensor,
    k: Tensor,
    scale: Tensor | float,
    *,
    both: bool = True,
    positives: Tensor | None = None,
    exclude_positive: bool = False,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    present: Tensor | None = None,
    form: Form = "softmax",
    bias: Tensor | float | None = None,
    exchange: Exchange = LOCAL,
    impl: Impl = "auto",
    names: tuple[str, str] = ("q", "k"),
    check: bool = True,
) -> Tensor:
    """Weighted mean over rows of their contrastive loss; row r of `q` pairs with row r of `k`.

    Logits are scale * q k^T; products and sums are taken in fp32 whatever the inputs' precision
    (fp64 for fp64). A row without negatives (one row, or all others absent) has loss 0, and so has
    a batch without weight; gradients are then exact zeros. All options must be equal on all ranks;
    row counts may differ.

    Args:
        q, k: [n, d] unit vectors of this rank.
        scale: Inverse temperature > 0; a tensor of one element receives its gradient. Above 57,
            or where it is a tensor on a GPU, the loss waits for the device once to see whether
            some row's sum underflowed.
        both: Mean of the losses of rows and of columns; False: rows only. The sigmoid form has no
            direction.
        positives: [n, d], replaces row r's partner in its positive logit, which becomes
            scale * q_r . positives_r; rows only. Its entries may be of any length up to 1.
        exclude_positive: Leave the positive out of the denominator.
        smoothing: In [0, 1): weight of the uniform distribution over the live columns in the
            target, as torch's `label_smoothing`.
        weights: [n] of the rows, >= 0; no gradient. None is 1.
        present: [n] bool; absent rows are neither anchors nor negatives, and their values are
            never read. Give a mask on all ranks or on none.
        form: "softmax", or "sigmoid": sum over columns of softplus(-+(logit + bias)), minus at
            the partner.
        bias: Of the sigmoid form, one element; a tensor receives its gradient. None is 0.
        exchange: Brings the columns of other ranks.
        impl: See `dispatch.choose`.
        names: What to call q and k in errors.
        check: Look for rows that are no finite unit vectors: reads both inputs once and, on a GPU,
            waits for it once. Without it such rows give garbage, up to infinity.

    Returns:
        Scalar: `size * (this rank's sum of w * loss) / (all ranks' sum of w)`, so that the mean
        over ranks is the loss of the global batch, and so is its gradient's.

    Raises:
        UserError: Shapes that differ, options that exclude each other, and with `check` rows that
            are no unit vectors, a scale that is no positive number or negative weights.
    """
    check_shapes(*_named(q, k, positives, names))
    _check_rows(len(q), weights, present, names)
    _check_options(form, both, positives, exclude_positive, smoothing)
    if check:
        _check_values(q, k, scale, weights, present, names, exchange)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
    given = _Given(
        _kept(q, present),
        _kept(k, present),
        _number(scale, dtype, q.device),
        _number(bias, dtype, q.device),
        None if positives is None else _kept(positives, present),
        _weights(weights, present, q, dtype),
        present,
    )
    concrete = choose(impl, q, k)
    primitives = importlib.import_module(f"outmodal.models.kernels.nce_{concrete}")
    lost = _may_underflow(scale)
    how = Softmax(primitives, both, exclude_positive, smoothing, exchange, lost)
    with torch.autocast(q.device.type, enabled=False):
        if concrete == "reference":
            return _reference(given, how, form)
        return _fused(given, how, form)


class _Given(NamedTuple):
    """The tensors of a call: absent rows are zeros and weigh 0, numbers are tensors."""

    q: Tensor
    k: Tensor
    scale: Tensor
    bias: Tensor
    positives: Tensor | None
    weights: Tensor
    present: Tensor | None


def _reference(x: _Given, how: Softmax, form: Form) -> Tensor:
    dtype = x.scale.dtype
    return nce_reference(
        x.q.to(dtype),
        x.k.to(dtype),
        x.scale,
        both=how.both,
        positives=None if x.positives is None else x.positives.to(dtype),
        exclude_positive=how.exclude_positive,
        smoothing=how.smoothing,
        weights=x.weights,
        present=x.present,
        form=form,
        bias=x.bias,
        exchange=how.exchange,
    )


def _fused(x: _Given, how: Softmax, form: Form) -> Tensor:
    rest = x.weights, x.present
    loss: Tensor
    if form == "sigmoid":
        sigmoid = Sigmoid(how.primitives, how.exchange)
        loss = SigmoidLoss.apply(x.q, x.k, x.scale, x.bias, *rest, sigmoid)  # type: ignore[no-untyped-call]
    else:
        loss = SoftmaxLoss.apply(x.q, x.k, x.scale, x.positives, *rest, how)  # type: ignore[no-untyped-call]
    return loss


def _named(
    q: Tensor, k: Tensor, positives: Tensor | None, names: tuple[str, str]
) -> tuple[list[Tensor], list[str]]:
    if positives is None:
        return [q, k], list(names)
    return [q, k, positives], [*names, "positives"]


def _check_options(
    form: str, both: bool, positives: Tensor | None, exclude_positive: bool, smoothing: float
) -> None:
    if form not in get_args(Form):
        raise UserError(f"unknown form '{form}'{nearest(form, get_args(Form))}")
    if not 0 <= smoothing < 1:
        raise UserError(f"label smoothing must be in [0, 1), got {smoothing}")
    if positives is not None and both:
        raise UserError("`positives` replaces partners of rows: give it with both=False")
    if form == "sigmoid" and (positives is not None or exclude_positive or smoothing):
        raise UserError(
            "the sigmoid form takes neither positives, exclude_positive nor smoothing: use form "
            "'softmax', or leave them out"
        )


def _check_rows(
    rows: int, weights: Tensor | None, present: Tensor | None, names: tuple[str, str]
) -> None:
    if present is not None:
        check_mask(present, rows, names[0])
    if weights is not None and weights.shape != (rows,):
        raise UserError(
            f"weights of '{names[0]}' and '{names[1]}' must be [{rows}], one for each row, got "
            f"{list(weights.shape)}"
        )


def _check_values(
    q: Tensor,
    k: Tensor,
    scale: Tensor | float,
    weights: Tensor | None,
    present: Tensor | None,
    names: tuple[str, str],
    exchange: Exchange,
) -> None:
    check_units((q, k), names, (present, present), exchange)
    value = float(scale.detach() if isinstance(scale, Tensor) else scale)
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f"the scale of '{names[0]}' and '{names[1]}' must be a positive finite number, got "
            f"{value}: a learned one should be the exponential of its parameter, clamped"
        )
    if weights is not None and bool(exchange.sum((weights < 0).sum()) > 0):
        raise UserError(f"weights of '{names[0]}' and '{names[1]}' must not be negative")


def _may_underflow(scale: Tensor | float) -> bool:
    """False where the scale is small enough; it is not read where that would wait for a device."""
    if isinstance(scale, Tensor):
        return scale.device.type != "cpu" or float(scale.detach()) > _SAFE_SCALE
    return scale > _SAFE_SCALE


def _number(value: Tensor | float | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor without dimensions, without a copy from the host that waits."""
    if isinstance(value, Tensor):
        return value.reshape(()).to(device, dtype)
    return torch.full((), 0.0 if value is None else value, dtype=dtype, device=device)


def _weights(
    weights: Tensor | None, present: Tensor | None, q: Tensor, dtype: torch.dtype
) -> Tensor:
    """[n] weights that are 0 where a row is absent."""
    if weights is None:
        weights = torch.ones(len(q), dtype=dtype, device=q.device)
    return _kept(weights.detach().to(q.device, dtype), present)


def _kept(t: Tensor, present: Tensor | None) -> Tensor:
    """[n, ...] with zeros in absent rows, whatever they hold."""
    if present is None:
        return t
    return torch.where(present.view(-1, *[1] * (t.dim() - 1)), t, t.new_zeros(()))
