"""What the cluster says, and what cannot run on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from outmodal.errors import UserError
from outmodal.launch.slurm import cluster
from outmodal.launch.slurm.cluster import check_request, gpus_of, read_partitions, seconds
from outmodal.launch.slurm.script import Job

SAID = {
    "sinfo": """\
 gpu|g1|64|gpu:h100:8(S:0-1)
gpu|g2|64|gpu:h100:8(S:0-1)
gpu|g3|32|gpu:a100:4
cpu|c1|128|(null)
cpu|c2|128|(null)
""",
    "scontrol": """\
PartitionName=gpu Default=NO MaxNodes=2 MaxTime=1-00:00:00 Nodes=g[1-3] State=UP TotalNodes=3
PartitionName=cpu Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=c[1-2] State=UP
PartitionName=old Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=c1 State=DOWN
""",
}
GPU = Job(("train",), Path("/run"), "x", nodes=2, tasks_per_node=8, gpus_per_node=8)


@pytest.fixture
def partitions(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, cluster.Partition]:
    monkeypatch.setattr(cluster, "ask", lambda *command: SAID[command[0]])
    return read_partitions()


def test_partitions_are_read(partitions: Mapping[str, cluster.Partition]) -> None:
    assert sorted(partitions) == ["cpu", "gpu", "old"]
    gpu = partitions["gpu"]
    assert (gpu.max_nodes, gpu.max_seconds, gpu.default) == (2, 86400, False)
    assert [node.gpus for node in gpu.nodes] == [8, 8, 4]
    assert partitions["cpu"].max_seconds is None


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 5400),
        ("10:30", 630),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-02:30:00", 95400),
        ("UNLIMITED", None),
    ],
)
def test_times(time: str, expected: int | None) -> None:
    assert seconds(time) == expected


@pytest.mark.parametrize(
    ("gres", "expected"),
    [("(null)", 0), ("gpu:2", 2), ("gpu:h100:8(S:0-1),nvme:1", 8), ("gpu:a:2,gpu:b:4", 6)],
)
def test_gpus(gres: str, expected: int) -> None:
    assert gpus_of(gres) == expected


def test_what_fits_is_let_through(partitions: Mapping[str, cluster.Partition]) -> None:
    check_request(replace(GPU, partition="gpu", time="1-00:00:00"), partitions)
    check_request(Job(("train",), Path("/run"), "x", nodes=2, tasks_per_node=128), partitions)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (replace(GPU, partition="gpus"), ["'gpus'", "did you mean 'gpu'"]),
        (replace(GPU, partition="old"), ["old", "not up"]),
        (replace(GPU, partition="gpu", nodes=3), ["--nodes 3", "2 at most"]),
        (replace(GPU, partition="gpu", gpus_per_node=9), ["gpus_per_node is 9", "largest has 8"]),
        (replace(GPU), ["partition cpu", "0 nodes"]),
        (replace(GPU, partition="gpu", time="25:00:00"), ["25:00:00", "1440 minutes"]),
        (replace(GPU, partition="gpu", cpus_per_task=9), ["cores", "64"]),
    ],
)
def test_what_cannot_run_is_refused(
    partitions: Mapping[str, cluster.Partition], job: Job, words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        check_request(job, partitions)
    for word in words:
        assert word in str(refused.value)


def test_no_default_partition(partitions: Mapping[str, cluster.Partition]) -> None:
    only = {"gpu": partitions["gpu"]}
    with pytest.raises(UserError, match="--partition"):
        check_request(GPU, only)


def test_no_sbatch_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no sbatch on the path"):
        cluster.ask("sbatch", "x")


def test_a_refusal_of_slurm_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "sbatch"
    script.write_text("#!/bin/sh\necho 'sbatch: error: Invalid account' >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match="sbatch refused: Invalid account"):
        cluster.ask("sbatch", "x")
