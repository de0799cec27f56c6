"""The engine's input: where batches come from, and the micro-batches of each step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError


class Feed(Protocol):
    """Where the engine's batches come from."""

    def epoch(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        """This rank's batches of steps start_step .. steps - 1 of an epoch."""
        ...

    def full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        """This rank's batches of a pass over every sample of `spec`."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint records of the feed; JSON."""
        ...


class Steps:
    """A feed's batches step by step, each in `pieces` micro-batches.

    Attributes:
        waited: Seconds spent waiting for data since it was last set to zero.
    """

    def __init__(self, feed: Feed, pieces: int) -> None:
        self._feed, self._pieces = feed, pieces
        self.waited = 0.0
        self._all = 0.0
        self._asked = (time.monotonic(), 0.0)

    def waiting(self) -> float:
        """Percentage of the time since the last call that was spent waiting for data."""
        now, before = time.monotonic(), self._asked
        self._asked = (now, self._all)
        return 100 * (self._all - before[1]) / max(now - before[0], 1e-9)

    def of(
        self, specs: Sequence[StreamSpec], epoch: int, start: int, stop: int
    ) -> Iterator[list[dict[str, Batch]]]:
        """The micro-batches of steps start .. stop - 1 of an epoch, on the CPU."""
        if stop <= start:
            return
        pieces = self._pieces
        parts = [_piece(spec, pieces) for spec in specs]
        batches = self._feed.epoch(parts, epoch, start * pieces, stop * pieces)
        for _ in range(start, stop):
            begin = time.monotonic()
            with _generator_untouched():
                micro = [next(batches) for _ in range(pieces)]
            spent = time.monotonic() - begin
            self.waited, self._all = self.waited + spent, self._all + spent
            yield micro


def _piece(spec: StreamSpec, pieces: int) -> StreamSpec:
    """The stream that gives a step's batch in several micro-batches, the same samples in all."""
    if spec.batch % pieces:
        raise UserError(
            f"engine.accumulate={pieces} does not divide the batch {spec.batch} of stream "
            f"'{spec.name}': choose a divisor of data.batch"
        )
    return replace(spec, batch=spec.batch // pieces)


@contextlib.contextmanager
def _generator_untouched() -> Iterator[None]:
    """A loader that starts workers draws from torch's generator; a resumed run starts it at
    another step, so the draw must not count."""
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)
