"""Matrix products of the tiled kernels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def product(x: Tensor, w: Tensor) -> Tensor:
    """x w^T of [r, d] and [c, d], as a new tensor; `w` may be a transposed view, `x` should not.

    torch gives fp32 products on x86 to MKL, which leaves a tenth of an AMD processor unused. The
    oneDNN that torch brings for compiled models does not, and is as good as MKL elsewhere.
    """
    if x.device.type == "cpu" and x.dtype is torch.float32 and _has_onednn():
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
        return out
    return torch.mm(x, w.t())


@functools.cache
def _has_onednn() -> bool:
    """Whether this build of torch has the operation, which is not part of its public interface,
    in the form used here."""
    mkldnn, mkl = torch.backends.mkldnn, torch.backends.mkl
    if not (mkldnn.is_available() and mkl.is_available()):  # type: ignore[no-untyped-call]
        return False
    x, w = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)
    try:
        out = torch.ops.mkldnn._linear_pointwise(x, w.t(), None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(out, x @ w)
