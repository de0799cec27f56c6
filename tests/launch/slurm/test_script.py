"""The script as text: golden, clean for shellcheck, and nothing in it that a value can break."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmodal.errors import UserError
from outmodal.launch.slurm.profile import Profile
from outmodal.launch.slurm.script import Job, render

GOLDEN = Path(__file__).parents[2] / "golden" / "slurm"
RUN = Path("/shared/runs/cox")
JOB = Job(
    arguments=("train", f"{RUN}/slurm/001.yaml", "--out", str(RUN)),
    run=RUN,
    name="cox",
    nodes=2,
    tasks_per_node=8,
    gpus_per_node=8,
    cpus_per_task=12,
    partition="gpu",
    account="vision",
    time="12:00:00",
    folder=Path("/home/ann/work"),
    reads=("/shared/data/dataset.json",),
    done=f"{RUN}/result.json",
)
PROFILE = Profile(
    modules=("cuda/12.8",),
    environment={"NCCL_SOCKET_IFNAME": "ib0"},
    setup=("source /shared/env.sh",),
    command=("outmodal",),
    directives=("--exclusive",),
)
CONTAINER = Profile(
    container=("apptainer", "exec", "--nv", "/images/out modal.sif"),
    signal="batch",
    grace=120,
    gpu_type="h200",
    gpu_request="gres",
    srun=("--mpi=none",),
    requeue=False,
)
CELLS = replace(
    JOB, arguments=("reproduce", "ova-ib-table1", "--out", "/t"), array="0-11%4", nodes=1, done=""
)
CASES = {
    "two_nodes": (JOB, PROFILE),
    "container": (JOB, CONTAINER),
    "cells": (CELLS, PROFILE),
    "cpu": (Job(("train", "r.yaml"), RUN, "tiny"), Profile(command=("outmodal",))),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_text_is_the_golden_one(name: str) -> None:
    """The whole script once, and of the others the part in which they differ."""
    text = render(*CASES[name])
    text = text if name == "two_nodes" else text[: text.index("\nlog=")]
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(CASES))
def test_shellcheck_finds_nothing(name: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None and os.environ.get("OUTMODAL_REQUIRE_SLURM") != "1":
        pytest.skip("shellcheck is not installed")
    path = tmp_path / "job.sbatch"
    text = render(*CASES[name]).replace("source /shared/env.sh", "true")
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_one_task_a_gpu_and_a_signal_ahead_of_the_limit() -> None:
    text = render(JOB, PROFILE)
    for line in ("ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=12", "signal=USR1@300"):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --requeue\n" in text
    assert "torchrun" not in text
    assert "#SBATCH --signal=B:USR1@120\n" in render(JOB, CONTAINER)
    assert "#SBATCH --gres=gpu:h200:8\n" in render(JOB, CONTAINER)
    assert "#SBATCH --no-requeue\n" in render(JOB, CONTAINER)
    assert '--cell "$SLURM_ARRAY_TASK_ID"' in render(CELLS, PROFILE)


ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def settings(text: str) -> str:
    """The part of the script that holds values from outside."""
    body = text[text.index("\nrun=") :]
    return body[: body.index("\nlog=")]


@given(st.lists(ANY_TEXT, max_size=4), ANY_TEXT)
def test_no_value_is_read_as_bash(arguments: list[str], value: str) -> None:
    """bash gives back exactly what went in, whatever it is."""
    job = replace(JOB, arguments=tuple(arguments), reads=tuple(arguments))
    profile = Profile(environment={"VALUE": value}, command=("outmodal",))
    show = 'printf "%s\\0" "${command[@]:1}" end "${reads[@]}" end "$VALUE"'
    done = subprocess.run(
        ["bash", "-c", settings(render(job, profile)) + "\n" + show],
        capture_output=True,
        check=True,
        cwd="/",
    )
    given_back = done.stdout.decode().split("\0")[:-1]
    assert given_back == [*arguments, "end", *arguments, "end", value]
    assert done.stderr == b""


@given(ANY_TEXT)
def test_a_directive_holds_one_value_or_is_refused(value: str) -> None:
    for job in (
        replace(JOB, partition=value),
        replace(JOB, time=value),
        replace(JOB, array=value),
        replace(JOB, run=Path("/") / value.replace("\0", "")),
        replace(JOB, folder=Path("/") / value.replace("\0", "")),
    ):
        try:
            text = render(job, PROFILE)
        except UserError:
            continue
        head = text[: text.index("\nset -u")].split("\n")
        assert all(line.startswith("#") for line in head), value
        directives = [line for line in head if line.startswith("#SBATCH")]
        assert len(directives) <= 17
        for line in directives:
            assert len(shlex.split(line, comments=False)) == 2, line


def test_a_refusal_names_what_it_refuses() -> None:
    for job, word in (
        (replace(JOB, partition="gpu; rm"), "partition"),
        (replace(JOB, time="1:00\n#SBATCH --uid=0"), "time"),
        (replace(JOB, run=Path('/runs/"x"')), "path"),
        (replace(JOB, run=Path("/runs/100%")), "path"),
    ):
        with pytest.raises(UserError, match=word):
            render(job, PROFILE)
    with pytest.raises(UserError, match="directive"):
        render(JOB, Profile(directives=("exclusive\nrm -rf",)))


def test_every_place_of_the_template_is_filled() -> None:
    assert not re.search(r"^\s*@\w+@$", render(JOB, PROFILE), re.MULTILINE)
