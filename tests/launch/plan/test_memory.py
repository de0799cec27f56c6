"""The estimate of memory against what processes really took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from outmodal.launch.plan.costs import Costs
from outmodal.launch.plan.hardware import Machine, find_gpu
from outmodal.launch.plan.memory import Holding, estimate
from outmodal.launch.plan.subject import Subject
from tests.launch.plan.recipes import vit_config

ROOT = Path(__file__).parents[3]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("again", "batch"), [(False, 512), (True, 512)])
def test_within_fifteen_percent_of_a_real_run(again: bool, batch: int, tmp_path: Path) -> None:
    """Peak resident memory of a training process, over the same process before it trained.

    The child takes memory of the system in small pieces and gives it back at once, so that what
    the allocator keeps for itself (the plan's slack) is not part of the comparison.
    """
    config = vit_config(96, 4, batch=batch, activation_checkpointing=again)
    subject = Subject(config)
    held = Holding(
        subject.parameters,
        2,
        False,
        subject.frozen_bytes(),
        subject.input_bytes(batch),
        "fp32",
        "cpu",
    )
    expected = estimate(held, subject.step_costs(batch), "single", 1, again).total
    assert _measured(batch, again, tmp_path) == pytest.approx(expected, rel=0.15)


def _measured(batch: int, again: bool, folder: Path) -> float:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "tests.launch.plan.measured", str(batch), str(again), folder]
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout.splitlines()[-1]))


def _held(device: str = "cuda") -> Holding:
    return Holding(1_000_000, 2, False, 0, 0, "fp32", device)  # type: ignore[arg-type]


NOTHING = Costs(np.zeros(1), np.zeros(1), np.zeros(1), 0.0)


def test_what_each_stage_shards() -> None:
    """Rajbhandari et al., 2020, figure 1, in fp32: moments, then gradients, then weights."""
    p, ranks = 4e6, 8
    by = {
        s: estimate(_held("cpu"), NOTHING, s, ranks, False)
        for s in ("ddp", "zero1", "zero2", "zero3")
    }
    assert by["ddp"].parts["optimizer"] == 2 * p
    assert all(by[s].parts["optimizer"] == 2 * p / ranks for s in ("zero1", "zero2", "zero3"))
    assert by["zero2"].parts["gradients"] < by["zero1"].parts["gradients"]
    assert by["zero1"].parts["weights"] == by["zero2"].parts["weights"] == p + p / ranks
    totals = [by[s].total for s in ("zero1", "zero2", "zero3")]
    assert totals == sorted(totals, reverse=True) or totals[1] <= totals[0]


def test_a_machine_keeps_something_for_itself() -> None:
    machine = Machine(find_gpu("h200"), 1, 8, 50e9)
    assert machine.usable < machine.gpu.memory - machine.reserve
    assert machine.wire == machine.gpu.peer
    assert Machine(find_gpu("h200"), 2, 8, 50e9).wire == 50e9
