"""`outmodal doctor`: each finding where all is well and where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outmodal.data import unindexed
from outmodal.errors import UserError
from outmodal.launch.commands.doctor import run
from outmodal.launch.doctor import machine, ranks, storage
from outmodal.launch.doctor.cluster import slurm_lines
from outmodal.launch.doctor.line import Line
from tests.data.tiny import make_tiny


def test_a_healthy_machine(tmp_path: Path) -> None:
    outcome = run(["--out", str(tmp_path / "runs" / "new")])
    assert outcome.exit_code == 0
    names = {check["name"]: check for check in outcome.data["checks"]}
    wanted = {
        "machine", "torch", "deepspeed", "GPU", "backends", "deepspeed ops", "shared memory",
        "open files", "SLURM", "disk", "data fashion-speech-sample train", "all-reduce",
    }  # fmt: skip
    assert wanted <= names.keys()
    assert "MB/s" in names["disk"]["found"]
    assert not (tmp_path / "runs").exists()
    json.dumps(outcome.data)


@pytest.mark.timeout(900)
def test_between_two_ranks_of_an_allocation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outmodal", "doctor", "--nproc", "2", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--data", "no-such-data"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    checks = json.loads(done.stdout)["checks"]
    found = {check["name"]: check for check in checks}
    assert "2 ranks on 1 hosts by gloo" in found["all-reduce"]["found"]
    assert found["clock"]["status"] == "ok"
    # both ranks miss the data set, on one host: one line
    assert [c["status"] for c in checks if c["name"] == "data no-such-data"] == ["failure"]
    assert len([c for c in checks if "no-such-data" in c["name"]]) == 1


def test_what_another_host_misses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [Line("data x", "ok", "fine")]
    theirs = {"name": "data x", "status": "failure", "found": "cannot be opened", "remedy": "mount"}
    monkeypatch.setattr(ranks.gather, "world", lambda: SimpleNamespace(size=2, rank=0))
    reports = [{"host": "node1", "lines": []}, {"host": "node2", "lines": [theirs]}]
    monkeypatch.setattr(ranks.gather, "all_gather_objects", lambda value: reports)
    monkeypatch.setattr(ranks.gather, "broadcast_object", lambda value: value)
    merged = ranks.together(mine)
    assert merged[1] == Line("node2: data x", "failure", "cannot be opened", "mount")


def test_clocks_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks.gather, "barrier", lambda: None)
    monkeypatch.setattr(ranks.gather, "all_gather_objects", lambda value: [100.0, 160.0])
    line = ranks._clock(["node1", "node2"])
    assert line.status == "warning"
    assert "node1 is behind node2" in line.found


def test_a_rank_that_looks_late_at_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not scheduled for a while after the ranks had met."""
    looks = [[100.0, 160.0], [200.0, 200.1]]
    monkeypatch.setattr(ranks.gather, "barrier", lambda: None)
    monkeypatch.setattr(ranks.gather, "all_gather_objects", lambda value: looks.pop(0))
    assert ranks._clock(["node1", "node2"]).status == "ok"


def test_a_disk_without_space_or_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(number: int) -> Any:
        def write(folder: Path, size: int) -> float:
            raise OSError(number, os.strerror(number))

        return write

    for number, word in ((errno.ENOSPC, "free space"), (errno.EROFS, "another --out")):
        monkeypatch.setattr(storage, "_write_rate", refuse(number))
        line = storage.disk_line(tmp_path)
        assert line.status == "failure"
        assert word in line.remedy
        assert str(tmp_path) in line.found


def test_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_write_rate", lambda folder, size: 5e6)
    line = storage.disk_line(tmp_path)
    assert line.status == "warning"
    assert "checkpoint_every" in line.remedy


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data")
    lines = storage.data_lines(str(dataset.root))
    assert {line.status for line in lines} == {"ok"}, lines
    shard = dataset.split("train").shards[0]
    path = dataset.shard_path(shard)
    raw = bytearray(path.read_bytes())
    raw[:512] = b"\xff" * 512
    path.write_bytes(raw)
    bad = [line for line in storage.data_lines(str(dataset.root)) if line.status == "failure"]
    assert len(bad) == 1
    assert shard.file in bad[0].found
    assert "data check" in bad[0].remedy


def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (256, 65536))
    line = machine._files()
    assert (line.status, line.remedy) == ("warning", "ulimit -n 4096")


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=64 << 20, used=0, free=64 << 20)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage)
    assert machine._shared_memory().status == "warning"


def _commands(folder: Path, answers: dict[str, str]) -> None:
    for name, script in answers.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)


def test_a_cluster_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = """case "$*" in
*config*) printf 'SLURM_VERSION = 22.05.8\\nClusterName = lab\\nJobRequeue = 0\\n'
          printf 'AccountingStorageType = accounting_storage/none\\n';;
*) echo 'PartitionName=gpu Default=YES State=UP MaxNodes=UNLIMITED MaxTime=1-00:00:00';;
esac"""
    _commands(
        tmp_path,
        {"sbatch": "exit 0", "scontrol": scontrol, "sinfo": "echo 'gpu|n1|64|gpu:h100:8'"},
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    main, requeue, accounting = slurm_lines()
    assert main.status == "ok"
    assert "22.05.8, cluster lab; gpu (1 nodes, 8 GPUs)" in main.found
    assert requeue.status == "warning"
    assert "none" in accounting.found


def test_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "echo 'scontrol: error: Unable to contact slurm controller' >&2; exit 1"
    _commands(tmp_path, {"sbatch": "exit 0", "scontrol": refused})
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (line,) = slurm_lines()
    assert line.status == "warning"
    assert "Unable to contact" in line.remedy


def test_bad_input() -> None:
    with pytest.raises(UserError, match="--nproc 0"):
        run(["--nproc", "0"])


def test_what_an_epoch_uses_is_said(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", 200)
    lines = storage.data_lines(str(dataset.root))
    (line,) = [line for line in lines if "an epoch has" in line.found]
    assert "data.batch=128, an epoch has 200 samples, uses 128, drops 72" in line.found


def test_the_mixture_of_a_recipe(tmp_path: Path) -> None:
    one = make_tiny(tmp_path / "one", 40, 2, ("image", "speech", "text"))
    two = make_tiny(tmp_path / "two", 30, 1, ("image",), seed=1)
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        f"base: align\ndata:\n  batch: 64\n  mix:\n    - {{path: {one.root}}}\n"
        f"    - {{path: {two.root}, weight: 2}}\n"
    )
    lines = storage.recipe_lines(str(recipe))
    assert {line.status for line in lines} == {"ok"}, lines
    text = "\n".join(line.found for line in lines)
    assert "70 samples in 3 shards" in text
    assert "an epoch has 70 samples, uses 64, drops 6" in text
    assert "tiny-2: 30 samples, 60.0 %, 1.28 passes" in text
    assert "reading takes at most about" in text
    recipe.write_text(recipe.read_text().replace("batch: 64", "batch: 128"))
    (line,) = [line for line in storage.recipe_lines(str(recipe)) if line.status == "warning"]
    assert line.remedy == "use data.batch=70 or less"
    recipe.write_text(f"base: align\ndata:\n  mix: [{{path: {tmp_path / 'gone'}}}]\n")
    (line,) = storage.recipe_lines(str(recipe))
    assert (line.status, line.found) == ("failure", "cannot be opened")


def test_giant_shards_without_an_index_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_tiny(tmp_path / "data")
    assert unindexed.unindexed_notice(dataset, "train") == ""
    monkeypatch.setattr(unindexed, "GIANT", 1000)
    for path in dataset.root.glob("*.index"):
        path.unlink()
    (line,) = [x for x in storage.data_lines(str(dataset.root)) if x.status == "warning"]
    assert "has no index file" in line.found
    assert "data index" in line.remedy
