"""The script's promises on a real cluster, with a stand-in for outmodal that needs no torch."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from tests.data.tiny import make_tiny
from tests.slurm.cluster import Cluster, poll
from tests.slurm.conftest import Submitter

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

RECIPE = """
data: {{path: {data}, batch: 8, streams: 4}}
learners:
  - {{name: mlp, modality: pose, input: {{name: vector, dim: 7}}}}
method: {{name: erm, unknown: pose, label_fraction: 0.5}}
engine: {{epochs: 2, device: cpu}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    make_tiny(tmp_path / "data", 64, 4, ("pose",))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(data=tmp_path / "data"), encoding="utf-8")
    return path


def stand_in(folder: Path, text: str) -> list[str]:
    """A command that is called instead of outmodal: bash with this text."""
    path = folder / "stand-in.sh"
    path.write_text(text, encoding="utf-8")
    return ["bash", str(path)]


WAITS = """
trap 'echo stopped; exit 75' USR1 TERM
echo ready
while :; do sleep 0.1; done
"""


def ready(log: Path, times: int) -> None:
    """Wait until the stand-in has begun for the `times`-th time."""
    poll(
        f"{times} x ready in {log}",
        lambda: log.is_file() and log.read_text("utf-8").count("ready") == times,
    )


WAYS = {
    "to the ranks": ("scancel", "--signal=USR1"),
    "to the batch shell": ("scancel", "--batch", "--signal=USR1"),
    "to both": ("scancel", "--full", "--signal=USR1"),
    "TERM to the ranks": ("scancel", "--signal=TERM"),
    "TERM to the batch shell": ("scancel", "--batch", "--signal=TERM"),
    "requeue": ("scontrol", "requeue"),
}


def test_every_way_to_ask_a_job_to_stop(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    """Each leads to 75 on all ranks and to a second attempt; scancel then ends the job for good."""
    profile = submit.profile(command=stand_in(tmp_path, WAITS))
    jobs = {}
    for number, way in enumerate(WAYS):
        out = ("--nodes", "2", "--out", tmp_path / str(number))
        jobs[way] = submit(recipe, *out, "--profile", profile)
    logs = {way: tmp_path / f"{i}/slurm/job-{job}" for i, (way, job) in enumerate(jobs.items())}
    for attempt in (1, 2):
        for way, job in jobs.items():
            for rank in range(2):
                ready(logs[way].with_name(f"job-{job}-rank-{rank}.log"), attempt)
            cluster.ask(*(WAYS[way] if attempt == 1 else ("scancel",)), str(job))
    for way, job in jobs.items():
        cluster.wait(job, "CANCELLED")
        said = logs[way].with_suffix(".log").read_text("utf-8")
        assert len(re.findall("queued (it )?again", said)) == 2, (way, said)
        assert said.count("not queued again") == 1, (way, said)
        assert ("SLURM has queued it again" in said) == (way == "requeue"), (way, said)
        for rank in range(2):
            text = logs[way].with_name(f"job-{job}-rank-{rank}.log").read_text("utf-8")
            assert text.count("stopped") == 2, (way, text)
    time.sleep(2)
    assert {cluster.job(job)["JobState"] for job in jobs.values()} == {"CANCELLED"}


@pytest.mark.slow
def test_the_time_limit_ends_in_the_queue(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    """Without any signal ahead of it: TERM at the limit is a stop like the others."""
    run = tmp_path / "run"
    profile = submit.profile(command=stand_in(tmp_path, WAITS), grace=1)
    job = submit(recipe, "--nodes", "2", "--out", run, "--profile", profile, "--time", "1")
    log = run / f"slurm/job-{job}-rank-1.log"
    ready(log, 1)
    submit.attempt(job, 1)
    ready(log, 2)
    cluster.ask("scancel", str(job))
    cluster.wait(job, "CANCELLED")


ENDS = {
    "finished": ("touch $5/result.json", "COMPLETED", "0:0", "0"),
    "without its result": ("exit 0", "FAILED", "1:0", "1"),
    "wrong input": ("echo what is wrong >&2; exit 2", "FAILED", "2:0", "0"),
    "failure": ("exit 3", "FAILED", "3:0", "1"),
    "failure of one rank": ("[ $RANK = 0 ] || kill -9 $$; exit 1", "FAILED", "137:0", "1"),
    "failures with progress": (
        """
mkdir -p $5/checkpoints
echo $SLURM_RESTART_COUNT >$5/checkpoints/latest
[ "${SLURM_RESTART_COUNT:-0}" != 2 ] || touch $5/result.json
[ "${SLURM_RESTART_COUNT:-0}" = 2 ] || exit 3
""",
        "COMPLETED",
        "0:0",
        "2",
    ),
}


def test_ends_and_retries(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    """What is done after each exit code, with one retry allowed."""
    jobs = {}
    for number, (name, (text, *_)) in enumerate(ENDS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        profile = submit.profile(command=stand_in(folder, f"set -- x $*\n{text}"), retries=1)
        jobs[name] = submit(recipe, "--nodes", "2", "--out", folder, "--profile", profile)
    for number, (name, (_, state, code, restarts)) in enumerate(ENDS.items()):
        end = submit.end(jobs[name])
        found = (end["JobState"], end["ExitCode"], end["Restarts"])
        log = tmp_path / f"{number}/slurm/job-{jobs[name]}.log"
        assert found == (state, code, restarts), (name, log.read_text("utf-8"))


def test_ranks_and_places(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    """One task a GPU; ranks, rendezvous and the number of the attempt in the environment."""
    run = tmp_path / "run 1"
    text = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $CUDA_VISIBLE_DEVICES $OWN"
    show = f"{text} $MASTER_ADDR:$MASTER_PORT; touch '{run}/result.json'"
    profile = submit.profile(command=stand_in(tmp_path, show), environment={"OWN": "it's $mine"})
    where = ("--nodes", "2", "--gpus_per_node", "2", "--cpus_per_task", "2", "--out", run)
    code, answer = submit.outcome(recipe, *where, "--profile", profile, "--follow")
    assert (code, answer["state"]) == (0, "COMPLETED")
    job = answer["job"]
    for rank in range(4):
        said = (run / f"slurm/job-{job}-rank-{rank}.log").read_text("utf-8").split(" ", 5)
        assert said[:5] == [str(rank), str(rank % 2), "4", "2", "0,1"]
        assert said[5].startswith("it's $mine 127.0.0.1:2")


def test_a_port_in_use_is_passed_over(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    text = f"echo at $MASTER_PORT; touch {run}/result.json"
    profile = submit.profile(command=stand_in(tmp_path, text))
    first = submit(recipe, "--out", tmp_path / "first", "--profile", profile)
    port = 20000 + (first + 1) * 7 % 10000
    with socket.create_server(("127.0.0.1", port)):
        job = submit(recipe, "--out", run, "--profile", profile)
        assert submit.end(job)["JobState"] == "COMPLETED"
    assert job == first + 1
    assert f"at {port + 1}\n" in (run / f"slurm/job-{job}-rank-0.log").read_text("utf-8")


BLIND = r"""#!/bin/bash
[ "$SLURMD_NODENAME" != node2 ] || export MASTER_ADDR=nobody.invalid
[ "$SLURMD_NODENAME" != node2 ] || set -- "${@/*dataset.json/\/nowhere/dataset.json}"
exec "$@"
"""


def test_a_node_that_lacks_something_is_named(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    """The container of node2 neither sees the data set nor resolves names."""
    inside = tmp_path / "container.sh"
    inside.write_text(BLIND, encoding="utf-8")
    inside.chmod(0o755)
    run = tmp_path / "run"
    profile = submit.profile(command=stand_in(tmp_path, "exit 0"), container=[str(inside)])
    job = submit(recipe, "--nodes", "2", "--out", run, "--profile", profile)
    assert submit.end(job)["ExitCode"] == "2:0"
    said = (run / f"slurm/job-{job}.log").read_text("utf-8")
    assert "node node2 cannot resolve nobody.invalid" in said
    assert "node node2 cannot read /nowhere/dataset.json" in said
    assert "node node1" not in said
    assert not list(run.glob("slurm/*rank*"))


def test_a_job_array_of_cells(submit: Submitter, cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    profile = submit.profile(command=stand_in(tmp_path, 'echo "$*"'))
    table = ("reproduce", "table 1", "--data", "a;b", "--out", folder)
    job = submit(*table, "--array", "0-2", "--profile", profile)
    logs = [folder / f"slurm/job-{job}-{cell}-rank-0.log" for cell in range(3)]
    for cell, log in enumerate(logs):
        poll(f"{log}", lambda log=log: log.is_file() and log.read_text("utf-8"))
        expected = f"reproduce table 1 --data a;b --out {folder} --cell {cell}\n"
        assert log.read_text("utf-8") == expected


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--partition", "mian"), ["'mian'", "did you mean 'main'"]),
        (("--partition", "closed"), ["closed", "not up"]),
        (("--nodes", "4"), ["--nodes 4", "3 at most"]),
        (("--gpus_per_node", "4"), ["gpus_per_node is 4", "largest has 2"]),
        (("--partition", "small", "--time", "0:11:00"), ["0:11:00", "10 minutes"]),
        (("--time", "5"), ["--time 5", "grace"]),
        (("--nodes", "3"), ["data.streams=4", "3 ranks"]),
        (("--out", "/proc/none"), ["/proc/none", "--out"]),
        (("--nodez", "2"), ["nodez", "did you mean 'nodes'"]),
        (("--optim.lrr", "2"), ["lrr", "optim.lr"]),
        (("--array", "0-3"), ["--array", "reproduce"]),
        (("--account", "a b"), ["account", "'a b'"]),
    ],
)
def test_what_cannot_work_is_not_submitted(
    submit: Submitter,
    cluster: Cluster,
    recipe: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    words: list[str],
) -> None:
    code, answer = submit.outcome(recipe, "--out", tmp_path / "run", *more)
    assert code == 2
    for word in words:
        assert word in answer["error"]


def test_a_dry_run_submits_nothing(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    code, answer = submit.outcome(recipe, "--out", tmp_path / "run", "--dry-run", "--nodes", "2")
    assert code == 0
    assert answer["script"].startswith("#!/bin/bash\n")
    assert answer["ranks"] == 2
    assert not (tmp_path / "run").exists()
    code, answer = submit.outcome(recipe, "--dry-run", "--partition", "nain")
    assert code == 2
