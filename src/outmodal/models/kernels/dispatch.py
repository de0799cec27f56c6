"""Which implementation of a kernel runs."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from outmodal.errors import UserError, nearest

Impl = Literal["auto", "triton", "tiled", "reference"]
Concrete = Literal["triton", "tiled", "reference"]
OLDEST_TRITON = (3, 6)


def choose(impl: Impl, *tensors: Tensor) -> Concrete:
    """Return the implementation to run on `tensors`.

    Args:
        impl: "auto" is triton for CUDA tensors of at most 32 bits where Triton >= 3.6 imports,
            else tiled. Anything else is taken as asked.
        tensors: What the kernel is to work on.

    Raises:
        UserError: An unknown name; triton without Triton >= 3.6, or for tensors it cannot take.
    """
    if impl not in get_args(Impl):
        raise UserError(f"unknown implementation '{impl}'{nearest(impl, get_args(Impl))}")
    if impl == "auto":
        return "triton" if _fit(tensors) and not lacks_triton() else "tiled"
    if impl == "triton":
        _require_triton(tensors)
    return impl


def _fit(tensors: tuple[Tensor, ...]) -> bool:
    return all(t.is_cuda and t.dtype is not torch.float64 for t in tensors)


def _require_triton(tensors: tuple[Tensor, ...]) -> None:
    if reason := lacks_triton():
        raise UserError(
            f"impl 'triton': {reason}; `pip install 'triton>=3.6'` or use impl 'auto' or 'tiled'"
        )
    if not _fit(tensors) and not interpreting():
        raise UserError(
            "impl 'triton' needs CUDA tensors of at most 32 bits: use impl 'auto' or 'tiled'"
        )


def interpreting() -> bool:
    """Whether Triton's interpreter is asked for, which runs kernels on the CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def lacks_triton() -> str:
    """Why Triton cannot be used here; "" where it can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        import triton
    except ImportError as e:
        return f"Triton does not import ({e})"
    version = str(getattr(triton, "__version__", "0"))
    numbers = tuple(int(p) for p in version.split(".")[:2] if p.isdigit())
    if numbers < OLDEST_TRITON:
        return f"Triton {version} is older than 3.6"
    return ""
