"""An exponential moving average of the weights, sharded like the masters that it follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from outmodal.train.state import Layout


class Ema:
    """average <- decay * average + (1 - decay) * masters, after every step that was taken."""

    def __init__(self, layout: Layout, decay: float) -> None:
        self._layout, self._decay = layout, decay
        self._average = [m.detach().clone() for m in layout.masters]

    @torch.no_grad()
    def update(self) -> None:
        """Follow the masters by one step."""
        masters = [master.detach() for master in self._layout.masters]
        if masters:
            torch._foreach_lerp_(self._average, masters, 1.0 - self._decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Compute with the average inside; afterwards the masters are back, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, master in zip(self._average, self._layout.masters, strict=True):
            held = master.detach().clone()
            master.detach().copy_(average)
            average.copy_(held)
        self._layout.publish()

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Full averages by parameter name. Collective."""
        return self._layout.gather(self._average, keep)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self._layout.scatter(state, self._average)
