"""Trains one configuration and prints by how many bytes the process grew at its worst moment."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import torch

from outmodal.launch.config import RunConfig
from outmodal.launch.running import run_plan
from outmodal.train.run import train
from tests.launch.plan.recipes import vit_config


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) * 1024


def _train(config: RunConfig, out: Path) -> None:
    train(run_plan(config, out))


def main(batch: int, again: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    _train(vit_config(16, 1, batch=16), folder / "warm")  # imports, pools, the tiny things
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    _train(vit_config(96, 4, batch=batch, activation_checkpointing=again), folder / "run")
    sys.stdout.write(f"{_status('VmHWM') - before}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3]))
