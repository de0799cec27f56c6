"""`outmodal submit` away from a cluster: options, profile, and what it refuses by itself."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from outmodal.launch.cli import main
from outmodal.launch.config import load_config
from outmodal.launch.slurm import submitting
from tests.data.tiny import make_tiny

RECIPE = """
data: {{path: {data}, batch: 8, streams: 4, workers: {workers}}}
learners:
  - {{name: mlp, modality: pose, input: {{name: vector, dim: 7}}}}
method: {{name: erm, unknown: pose, label_fraction: 0.5}}
engine: {{epochs: 1, device: cpu}}
"""


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OUTMODAL_SLURM_PROFILE", raising=False)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    make_tiny(tmp_path / "data", 32, 4, ("pose",), test=8)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(data=tmp_path / "data", workers=0), encoding="utf-8")
    return str(path)


def submit(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    code = main(["submit", *args, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_options_in_every_form(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With dashes or underscores, with = or without; recipe keys among them."""
    forms = ("--nodes=2", "--gpus-per-node", "2", "--data.window", "16", "--dry-run")
    code, answer = submit(capfd, recipe, *forms, f"--out={tmp_path}/run")
    assert code == 0, answer
    assert answer["ranks"] == 4
    assert "--gpus-per-node=2\n" in answer["script"]
    assert f"run={tmp_path}/run\n" in answer["script"]
    assert "--job-name=tiny\n" in answer["script"]
    assert f'--chdir="{Path.cwd()}"\n' in answer["script"]


def test_options_go_before_the_profile(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("{partition: gpu, gpus_per_node: 2, cpus_per_task: 3, time: '60'}")
    where = ("--profile", str(profile), "--dry-run", "--out", str(tmp_path / "run"))
    script = submit(capfd, recipe, *where)[1]["script"]
    for line in ("partition=gpu", "gpus-per-node=2", "cpus-per-task=3", "time=60"):
        assert f"#SBATCH --{line}\n" in script
    more = ("--partition", "cpu", "--gpus_per_node", "0", "--cpus_per_task", "0", "--time", "30")
    script = submit(capfd, recipe, *where, *more)[1]["script"]
    assert "#SBATCH --partition=cpu\n" in script
    assert "gpus-per-node" not in script
    assert "cpus-per-task" not in script.split("set -u")[0]
    assert "#SBATCH --time=30\n" in script


def test_loader_workers_get_cores(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = ("--dry-run", "--out", str(tmp_path / "run"), "--data.workers", "2")
    assert "--cpus-per-task=3\n" in submit(capfd, recipe, *where)[1]["script"]


def test_a_run_that_began_with_other_values(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", recipe, "--out", str(out)]) == 0
    code, answer = submit(capfd, recipe, "--dry-run", "--out", str(out), "--optim.lr", "0.5")
    assert code == 2
    assert "optim.lr" in answer["error"]
    code, answer = submit(capfd, recipe, "--dry-run", "--out", str(out), "--engine.keep", "5")
    assert code == 0


def test_the_written_configuration_is_the_whole_one(recipe: str, tmp_path: Path) -> None:
    """A job reads no recipe that may change later, and no value goes through a shell."""
    from outmodal.launch.config import dump_config

    config = load_config(recipe, ["--seed", "7", "--optim.lr", "0.125"])
    kept = tmp_path / "001.yaml"
    kept.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(kept)) == config


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["no sbatch on the path", "login node", "--nproc"]),
        (("--nodes", "3", "--dry-run"), ["data.streams=4", "3 ranks"]),
        (("--nodes", "0", "--dry-run"), ["--nodes"]),
        (("--nodes", "two"), ["nodes"]),
        (("--nodes",), ["--nodes wants a value"]),
        (("--data.path", "/nowhere", "--dry-run"), ["/nowhere"]),
        (("--follows", "--dry-run"), ["follows", "follow"]),
        (("--profile", "/nowhere.yaml"), ["/nowhere.yaml"]),
    ],
)
def test_what_is_refused_without_a_cluster(
    recipe: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    words: list[str],
) -> None:
    code, answer = submit(capfd, recipe, "--out", str(tmp_path / "run"), *args)
    assert code == 2
    for word in words:
        assert word in answer["error"]


def test_a_dry_run_where_slurm_is_installed_but_not_set_up(
    recipe: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 'sbatch: fatal: no configuration source' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/bin")
    where = (recipe, "--out", str(tmp_path / "run"), "--data.window", "16")
    assert main(["submit", *where, "--dry-run"]) == 0
    assert "#SBATCH --job-name=tiny\n" in capfd.readouterr().out
    assert "not checked against a cluster: sbatch refused: no configuration source" in caplog.text
    code, answer = submit(capfd, *where)
    assert (code, "no configuration source" in answer["error"]) == (2, True)
    # what the profile alone forbids is still refused
    code, answer = submit(capfd, *where, "--dry-run", "--time", "1:00")
    assert (code, "--time 1:00" in answer["error"]) == (2, True)


def test_a_full_disk_is_named(
    recipe: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(submitting, "_check_cluster", lambda job, profile: None)
    monkeypatch.setattr(os, "fsync", full)
    code, answer = submit(capfd, recipe, "--out", str(tmp_path / "run"))
    assert code == 2
    assert f"{tmp_path}/run: No space left on device" in answer["error"]
    assert "--out" in answer["error"]


def test_a_table_wants_a_folder_and_cells(capfd: pytest.CaptureFixture[str]) -> None:
    code, answer = submit(capfd, "reproduce", "ova-ib-table1", "--data", "d")
    assert code == 2
    assert "--array" in answer["error"]


def test_a_recipe_comes_first(capfd: pytest.CaptureFixture[str]) -> None:
    code, answer = submit(capfd, "--nodes", "2")
    assert code == 2
    assert "recipe comes first" in answer["error"]
