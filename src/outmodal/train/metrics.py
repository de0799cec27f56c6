"""metrics.jsonl, which a resumed run continues byte for byte, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.errors import UserError

_SHOWN = 8  # sample inputs of each modality


def line(step: int, epoch: int, stage: str, split: str, values: Mapping[str, float]) -> str:
    """One line of metrics.jsonl: sorted keys, nothing that depends on the clock.

    Values that are not finite become null, since JSON has no word for them.
    """
    clean = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
    record = {"step": step, "epoch": epoch, "stage": stage, "split": split, "values": clean}
    return json.dumps(record, sort_keys=True) + "\n"


class Metrics:
    """Where a run's numbers go. Only the main process has one.

    A write that fails (a full disk) is noted in `problem`, for all ranks to stop together.

    Args:
        folder: The run's folder.
        offset: Length of metrics.jsonl in the checkpoint to go on from; what lies behind it
            was written by a run that was stopped, and is written again.
        step: Step of that checkpoint.
    """

    def __init__(self, folder: Path, offset: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.problem: str | None = None
        self._path = path = folder / "metrics.jsonl"
        self._file = path.open("ab")
        self._file.truncate(min(offset, path.stat().st_size))
        self._file.seek(0, os.SEEK_END)
        self._board: Any = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(
        self, step: int, epoch: int, stage: str, split: str, values: Mapping[str, float]
    ) -> None:
        """Append one line, and the same as TensorBoard scalars SPLIT/NAME."""
        with self._noted():
            self._file.write(line(step, epoch, stage, split, values).encode())
            self._file.flush()
        self.board(step, {f"{split}/{name}": value for name, value in values.items()})

    def board(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars for TensorBoard only: what depends on the machine and the clock."""
        with self._noted():
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def show_inputs(self, batches: Mapping[str, Batch]) -> None:
        """Sample inputs of the first step: pictures and spectrograms, scaled to 0..1."""
        for stream, batch in batches.items():
            first = batch.rows(slice(0, _SHOWN))
            for modality in first.x:
                x = first.finish_one(modality, torch.device("cpu"))
                if x.ndim == 4 and x.shape[1] in (1, 3) and x.is_floating_point():
                    self._board.add_images(f"{stream}/{modality}", _scaled(x), 0)

    def offset(self) -> int:
        """Length of metrics.jsonl now, safely on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Finish both files."""
        for file in (self._file, self._board):
            with self._noted():
                file.close()

    def check(self) -> None:
        """Raise what was noted.

        Raises:
            UserError: The run folder could not be written; names it and the remedy.
        """
        if self.problem is not None:
            raise UserError(
                f"cannot write {self._path}: {self.problem}. The checkpoints are intact: free "
                "space or lift the quota, then run the same command again"
            )

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = error.strerror or str(error)


def _scaled(x: Tensor) -> Tensor:
    flat = x.detach().float().cpu().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    scaled = (flat - low[:, None]) / (high - low).clamp_min(1e-6)[:, None]
    return scaled.view_as(x)
