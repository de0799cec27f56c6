"""Memory as bytes of tensors, counted: exact, and the same on every machine."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Counts tensors that are alive at once, of those made while it is active.

    Attributes:
        peak: Most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _held(t)}
        out = func(*args, **kwargs)
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        for t in tree_leaves(out):
            if _held(t) and t.untyped_storage()._cdata not in given:
                storage = t.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def _held(t: object) -> bool:
    return isinstance(t, Tensor)
