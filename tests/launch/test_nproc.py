"""`outmodal train --nproc 2` and other launchers: real processes, equal losses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outmodal.launch import local
from outmodal.launch.local import held_port, run_local
from tests.data.tiny import make_tiny

pytestmark = pytest.mark.timeout(900)  # processes that import everything

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
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


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
    with held_port() as port:
        where = ("--master-port", str(port))
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
        ended = started.poll()
        assert not ended, started.communicate()[1].decode()
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=600)[1].decode()
    assert started.returncode in (0, 75), said  # it may be done already
    done = outmodal(*args, "--engine.checkpoint_every", "1")
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(alone, abs=1e-5)


Stub = Callable[[str], Path]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    """Has ranks run some lines of Python instead of outmodal; returns the folder they are in."""

    def write(text: str) -> Path:
        site = tmp_path / "outmodal"
        site.mkdir()
        (site / "__init__.py").write_text("")
        (site / "__main__.py").write_text(f"import os, signal, sys, time\n{text}\n")
        return tmp_path

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.2)
    return write


def test_a_rank_that_dies_ends_the_others(stub: Stub, capfd: pytest.CaptureFixture[str]) -> None:
    """Rank 1 leaves with 1 at once; the others must not wait for it for ever."""
    folder = stub("if os.environ['RANK'] == '1': sys.exit(1)\ntime.sleep(600)")
    code, answer = run_local(["train"], 2)
    assert code == 1
    assert answer == ""
    assert os.environ["PYTHONPATH"] == str(folder)
    assert capfd.readouterr().err == ""


def test_a_rank_that_is_killed_is_named(stub: Stub, capfd: pytest.CaptureFixture[str]) -> None:
    """It could say nothing itself."""
    stub("if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)")
    assert run_local(["train"], 2) == (1, "")
    assert capfd.readouterr().err == (
        "outmodal: rank 1 was ended by SIGKILL, as a system does that is short of memory\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_are_stopped_before_they_can_listen(
    stub: Stub, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost: the command says, as after a checkpoint, that it is to be run again."""
    folder = stub("open(os.environ['RANK'], 'w').close()\ntime.sleep(600)")

    def ask() -> None:
        while not all((folder / rank).exists() for rank in "01"):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    assert run_local(["train"], 2) == (75, "")
    asking.join()
    assert capfd.readouterr().err == ""


def test_a_signal_while_ranks_are_started_reaches_all(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when rank 0 runs and is not in the list of ranks yet."""
    stub("time.sleep(600)")
    start = subprocess.Popen

    def starting(*args: Any, **kwargs: Any) -> Any:
        rank = start(*args, **kwargs)
        if kwargs["env"]["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return rank

    monkeypatch.setattr(local.subprocess, "Popen", starting)
    assert run_local(["train"], 2) == (75, "")


def test_a_port_that_is_held_is_given_to_nobody_else() -> None:
    """But ranks can listen there, as rendezvous do."""
    with held_port() as port, socket.socket() as stranger, socket.socket() as rank:
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        rank.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rank.bind(("127.0.0.1", port))
        rank.listen()
