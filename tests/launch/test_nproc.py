"""`outmodal train --nproc 2` and other launchers: real processes, equal losses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outmodal.launch.local import free_port, run_local
from tests.data.tiny import make_tiny

RECIPE = """
data:
  path: {data}
  batch: 8
  streams: 4
learners:
  - name: mlp
    modality: pose
    input: {{name: vector, dim: 7}}
method:
  name: erm
  unknown: pose
  label_fraction: 0.5
optim: {{name: adam, lr: 1.0e-2}}
engine: {{epochs: 2, device: cpu, log_every: 1, threads: 1}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nproc")
    make_tiny(folder / "data", samples=64, shards=4)
    text = RECIPE.format(data=folder / "data")
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def outmodal(*args: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*launcher, *([] if launcher else [sys.executable]), "-m", "outmodal", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["values"]["loss"] for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def alone(recipe: Path) -> list[float]:
    out = recipe.parent / "alone"
    done = outmodal("train", str(recipe), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert len(losses(out)) == 16
    return losses(out)


@pytest.mark.parametrize(
    "strategy",
    ["ddp", "zero2", *(pytest.param(s, marks=pytest.mark.long) for s in ("zero1", "zero3"))],
)
def test_two_processes_give_the_losses_of_one(
    recipe: Path, alone: list[float], tmp_path: Path, strategy: str
) -> None:
    out = tmp_path / "run"
    done = outmodal(
        "train",
        str(recipe),
        "--nproc",
        "2",
        "--out",
        str(out),
        "--engine.strategy",
        strategy,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["run"] == str(out)
    assert set(answer["metrics"]) >= {"top1", "top5"}
    assert losses(out) == pytest.approx(alone, abs=1e-5)


def test_torchrun_joins_the_same_way(recipe: Path, alone: list[float], tmp_path: Path) -> None:
    out = tmp_path / "run"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    where = ("--master-port", str(free_port()))
    done = outmodal("train", str(recipe), "--out", str(out), launcher=(*torchrun, *where))
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(alone, abs=1e-5)


def test_a_mistake_ends_all_processes_with_2(recipe: Path, tmp_path: Path) -> None:
    done = outmodal(
        "train", str(recipe), "--nproc", "2", "--out", str(tmp_path), "--data.path", "nowhere"
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def test_a_signal_reaches_the_ranks_and_the_command_goes_on(
    recipe: Path, alone: list[float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    args = ["train", str(recipe), "--nproc", "2", "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, "-m", "outmodal", *args, "--engine.checkpoint_every", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    metrics = out / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n")):
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=120) in (0, 75)
    done = outmodal(*args, "--engine.checkpoint_every", "1")
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(alone, abs=1e-5)


def test_a_rank_that_dies_ends_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rank 1 leaves with 1 at once; the others must not wait for it for ever."""
    site = tmp_path / "outmodal"
    site.mkdir()
    (site / "__init__.py").write_text("")
    (site / "__main__.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(1)\ntime.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("outmodal.launch.local.GRACE_SECONDS", 0.2)
    code, answer = run_local(["train"], 2)
    assert code != 0
    assert answer == ""
    assert os.environ["PYTHONPATH"] == str(tmp_path)
