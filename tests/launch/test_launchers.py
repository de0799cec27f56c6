"""Other launchers start the ranks: torchrun, DeepSpeed's launcher, accelerate launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from outmodal.launch.local import held_port
from tests.data.tiny import make_tiny

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
RECIPE = """
data: {{path: {data}, batch: 8, streams: 4}}
learners:
  - {{name: mlp, modality: pose, input: {{name: vector, dim: 7}}}}
method: {{name: erm, unknown: pose, label_fraction: 0.5}}
engine: {{epochs: 1, device: cpu, log_every: 1, threads: 1, timeout: 5.0}}
"""
LAUNCHERS = {
    "torchrun": (
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
        ["--master-port", "{port}", "-m", "outmodal"],
    ),
    "deepspeed": (
        [str(BIN / "deepspeed"), "--num_gpus", "2", "--no_local_rank"],
        ["--master_port", "{port}", "--module", "outmodal"],
    ),
    "accelerate": (
        [str(BIN / "accelerate"), "launch", "--use_deepspeed", "--num_processes", "2"],
        ["--main_process_port", "{port}", "-m", "outmodal"],
    ),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launchers")
    make_tiny(folder / "data", 64, 4, ("pose",))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(data=folder / "data"), encoding="utf-8")
    return path


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["values"]["loss"] for line in lines if line["split"] == "train"]


def start(command: list[str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    env["PATH"] = f"{BIN}:{env['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=env
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone(recipe: Path) -> list[float]:
    out = recipe.parent / "alone"
    start([sys.executable, "-m", "outmodal", "train", str(recipe), "--out", str(out)])
    return losses(out)


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_a_launcher_starts_two_ranks(
    recipe: Path, alone: list[float], tmp_path: Path, name: str
) -> None:
    """Two ranks, not two runs of one: their losses are those of one process, logged once."""
    out = tmp_path / "run"
    head, tail = LAUNCHERS[name]
    job = ["train", str(recipe), "--out", str(out), "--engine.strategy", "zero2"]
    with held_port() as port:
        start([*head, *(part.format(port=port) for part in tail), *job])
    assert losses(out) == pytest.approx(alone, abs=1e-5)
    newest = out / "checkpoints" / (out / "checkpoints/latest").read_text().strip()
    state = json.loads((newest / "state.json").read_text())
    assert state["written_by"]["processes"] == 2
