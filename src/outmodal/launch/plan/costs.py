"""What a step costs, counted on a step that really runs: operations, bytes, and live memory.

A small batch runs on the CPU, and every operation below autograd is seen: its floating-point
operations by torch's own formulas, the bytes it reads and writes, and how many bytes of tensors
are alive. All three are linear in the rows of a batch, operation by operation, so two sizes give
any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Costs:
    """One step of some number of rows.

    Attributes:
        flops: [operations] floating-point operations of each.
        moved: [operations] bytes that each reads and writes.
        alive: [operations] bytes of tensors alive after each, beyond what was there before.
        kept: Bytes alive between forward and backward.
    """

    flops: NDArray[np.float64]
    moved: NDArray[np.float64]
    alive: NDArray[np.float64]
    kept: float

    @property
    def peak(self) -> float:
        """Bytes alive at the worst moment."""
        return float(self.alive.max(initial=0.0))

    def summed(self) -> Costs:
        """The same as one operation, where the single ones cannot be compared."""
        flops, moved, peak = (
            np.array([x]) for x in (self.flops.sum(), self.moved.sum(), self.peak)
        )
        return Costs(flops, moved, peak, self.kept)

    def seconds(self, flops_rate: float, byte_rate: float) -> float:
        """Roofline time: each operation takes the longer of its arithmetic and its traffic."""
        return float(np.maximum(self.flops / flops_rate, self.moved / byte_rate).sum())


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation while it is entered.

    Args:
        held: Tensors that exist already and do not count (parameters, inputs).
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {t.untyped_storage()._cdata for t in held}
        self._flops: list[float] = []
        self._moved: list[float] = []
        self._alive: list[float] = []
        self.live = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        fresh = [self._note(t) for t in results]
        formula = flop_registry.get(func._overloadpacket)
        arithmetic = formula(*args, **kwargs, out_val=out) if formula else 0
        if arithmetic or any(fresh) or func._schema.is_mutable:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self._flops.append(float(arithmetic))
            self._moved.append(float(sum(t.nbytes for t in [*given, *results])))
            self._alive.append(float(self.live))
        return out

    def _note(self, t: Tensor) -> bool:
        """Count a tensor's storage once, until it dies; True where it is new."""
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return False
        self._known.add(key)
        self.live += size
        weakref.finalize(storage, self._drop, key, size)
        return True

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def costs(self, kept: int) -> Costs:
        """What was seen so far."""
        flops, moved, alive = (np.array(c) for c in (self._flops, self._moved, self._alive))
        return Costs(flops, moved, alive, float(kept))


def count(forward: Callable[[], Tensor], held: Iterable[Tensor]) -> Costs:
    """Costs of one forward and backward pass.

    Args:
        forward: Returns the scalar loss.
        held: Tensors that are there anyway. Gradients of parameters count as new.
    """
    watch = Watch(held)
    with watch:
        loss = forward()
        kept = watch.live
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        costs = watch.costs(kept)
        del loss
    return costs


def at_rows(small: tuple[int, Costs], large: tuple[int, Costs], rows: int) -> Costs:
    """Costs of `rows` rows from those of two smaller numbers of rows."""
    (a, first), (b, second) = small, large
    share = (rows - a) / (b - a)

    def line(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.maximum(x + (y - x) * share, 0.0)
        return found

    kept = max(first.kept + (second.kept - first.kept) * share, 0.0)
    if len(first.flops) != len(second.flops):  # a loop over tiles went round once more
        first, second = first.summed(), second.summed()
    return Costs(
        line(first.flops, second.flops),
        line(first.moved, second.moved),
        line(first.alive, second.alive),
        kept,
    )


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' values."""
    return sum(t.numel() * t.element_size() for t in tensors)


def elements(tensors: Iterable[Tensor]) -> int:
    """Numbers in the tensors."""
    return sum(t.numel() for t in tensors)


def no_gradients(tensors: Iterable[Tensor]) -> None:
    """Forget gradients, so that the next count starts as a training step does."""
    for t in tensors:
        t.grad = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
