"""A first-in first-out memory of detached rows, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from outmodal.train import gather


class Queue:
    """The newest rows that the ranks have pushed, oldest first.

    Every push gathers the rows of all ranks in rank order, so that the content is equal on all of
    them, and does not depend on how many there are. Tensors are never written to in place: what
    `rows` gave for a loss stays as it was until its backward, whatever is pushed meanwhile.

    Args:
        capacity: Rows kept, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a queue of capacity {capacity} holds nothing")
        self.capacity = capacity
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(next(iter(self._held.values()))) if self._held else 0

    def rows(self) -> dict[str, Tensor]:
        """Name -> [len, ...] of what is held, oldest first; {} before the first push."""
        return dict(self._held)

    @torch.no_grad()
    def push(self, rows: Mapping[str, Tensor], mask: Tensor | None = None) -> None:
        """Append rows of the global batch, and drop the oldest beyond the capacity. Collective.

        A row with a number that is not finite is left out: it would spoil all steps to come.

        Args:
            rows: Name -> [n, ...] of this rank. The names are the same in every push, n is one
                number for all names, and may be 0 and differ from rank to rank.
            mask: [n] bool, the rows to take; None is all of them.
        """
        new = {
            name: gather.all_gather_rows(t if mask is None else t[mask]) for name, t in rows.items()
        }
        counts = {len(t) for t in new.values()}
        assert len(counts) == 1, f"rows of different numbers: {counts}"
        assert not self._held or set(new) == set(self._held), f"other names: {sorted(new)}"
        sound = torch.stack([_finite_rows(t) for t in new.values()]).all(dim=0)
        for name, t in new.items():
            held = self._held.get(name)
            kept = t[sound].clone() if held is None else torch.cat([held.to(t.device), t[sound]])
            self._held[name] = kept[-self.capacity :].clone()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs: `rows`."""
        return self.rows()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, on this rank's device."""
        device = gather.world().device
        self._held = {name: t[-self.capacity :].to(device).clone() for name, t in state.items()}


def _finite_rows(t: Tensor) -> Tensor:
    """[n] bool."""
    finite = t.isfinite()
    return finite.flatten(1).all(dim=1) if finite.ndim > 1 else finite
