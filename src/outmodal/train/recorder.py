"""The numbers of a run on their way to metrics.jsonl and TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.train import gather
from outmodal.train.hardware import Usage
from outmodal.train.metrics import Metrics
from outmodal.train.writer import Written


class Recorder:
    """Writes on the main process; elsewhere it only takes part in the means over ranks.

    Args:
        every: Steps between lines of training.
        total: Steps of the run.

    Attributes:
        gauges: Name for TensorBoard -> what reads it on the main process whenever speed is shown.
    """

    def __init__(self, every: int, total: int) -> None:
        self._every, self._total = every, total
        self._metrics: Metrics | None = None
        self._usage = Usage()
        self.gauges: dict[str, Callable[[], float]] = {}
        self._clock = (time.monotonic(), 0)

    def open(self, folder: Path, offset: int, step: int) -> None:
        """Go on after `step`, where metrics.jsonl had `offset` bytes."""
        if gather.is_main():
            self._metrics = Metrics(folder, offset, step)
        self._clock = (time.monotonic(), step)

    def values(
        self,
        step: int,
        losses: Sequence[Tensor],
        logs: Sequence[Mapping[str, Tensor]],
        more: Mapping[str, float],
    ) -> dict[str, float]:
        """Numbers of a step that is logged, else nothing. Reading them waits for the device."""
        if step % self._every and step not in (1, self._total):
            return {}
        loss = math.fsum(float(t) for t in losses) / len(losses)
        values = {name: math.fsum(float(one[name]) for one in logs) / len(logs) for name in logs[0]}
        values["loss"] = gather.mean_over_ranks([loss])[0]
        return values | dict(more)

    def write(
        self, step: int, epoch: int, stage: str, split: str, values: Mapping[str, float]
    ) -> None:
        """Append a line of numbers, where there are any."""
        if values and self._metrics is not None:
            self._metrics.write(step, epoch, stage, split, values)

    def speed(self, step: int, waited: float) -> None:
        """Show steps a second since the last call, the share of it that data were waited for, what
        the machine gave for it, and the gauges."""
        now = time.monotonic()
        spent, steps = max(now - self._clock[0], 1e-9), step - self._clock[1]
        if self._metrics is not None and steps > 0:
            share = 100 * waited / spent
            shown = {"speed/steps_per_s": steps / spent, "data/waiting_percent": share}
            shown |= {f"hardware/{name}": value for name, value in self._usage.read().items()}
            self._metrics.board(step, shown | {name: read() for name, read in self.gauges.items()})
        self._clock = (now, step)

    def checkpoints(self, written: Sequence[Written]) -> None:
        """Show what checkpoints cost."""
        for cost in written if self._metrics is not None else ():
            assert self._metrics is not None
            shown = {
                "stall_s": cost.stall_s,
                "snapshot_s": cost.snapshot_s,
                "write_s": cost.write_s,
                "MiB": cost.bytes / 2**20,
            }
            self._metrics.board(cost.step, {f"checkpoint/{k}": v for k, v in shown.items()})

    def show_inputs(self, batches: Mapping[str, Batch]) -> None:
        """Sample inputs for TensorBoard."""
        if self._metrics is not None:
            self._metrics.show_inputs(batches)

    def offset(self) -> int:
        """Length of metrics.jsonl, safely on the disk; 0 where it is not written."""
        return self._metrics.offset() if self._metrics else 0

    @property
    def failed(self) -> bool:
        """A write was refused."""
        return self._metrics is not None and self._metrics.problem is not None

    def check(self) -> None:
        """Raise UserError where a write was refused."""
        if self._metrics is not None:
            self._metrics.check()

    def close(self) -> None:
        """Finish the files."""
        if self._metrics is not None:
            self._metrics.close()
