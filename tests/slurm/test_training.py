"""Real trainings on a real cluster: launch, preemption, faults, other numbers of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data.tiny import make_tiny
from tests.slurm import rank
from tests.slurm.cluster import Cluster, poll
from tests.slurm.conftest import Submitter

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS = 32
RECIPE = """
data: {{path: {data}, batch: 8, streams: 4}}
learners:
  - {{name: mlp, modality: pose, input: {{name: vector, dim: 7}}}}
method: {{name: erm, unknown: pose, label_fraction: 0.5}}
optim: {{name: adam, lr: 1.0e-2}}
engine: {{epochs: 4, device: cpu, log_every: 1, threads: 1, checkpoint_every: 5, timeout: 5.0}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    make_tiny(folder / "data", 64, 4, ("pose",))
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(data=folder / "data"), encoding="utf-8")
    return path


def local(recipe: Path, out: Path, *more: str) -> Path:
    """A run of this machine alone."""
    command = [sys.executable, "-m", "outmodal", "train", str(recipe), "--out", str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert len(losses(out)) == STEPS
    return out


@pytest.fixture(scope="module")
def alone(recipe: Path) -> list[float]:
    """Losses of one process."""
    return losses(local(recipe, recipe.parent / "alone"))


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    """A run of two processes that nothing interrupted."""
    return local(recipe, recipe.parent / "undisturbed", "--nproc", "2")


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["values"]["loss"] for line in lines if line["split"] == "train"]


def assert_same_run(run: Path, other: Path) -> None:
    """The same metrics and weights, bit for bit."""
    assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    name = (other / "checkpoints/latest").read_text()
    assert (run / "checkpoints/latest").read_text() == name
    weights = Path("checkpoints") / name.strip() / "weights.safetensors"
    assert (run / weights).read_bytes() == (other / weights).read_bytes()


class Held:
    """A run whose ranks wait before the steps that a test names."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._path = run.with_suffix(".hold")
        self.command = [sys.executable, rank.__file__]
        self.environment = {rank.HOLD: str(self._path)}

    def at(self, step: int) -> None:
        """Let the run go on up to `step` steps."""
        beside = self._path.with_suffix(".new")
        beside.write_text(str(step), encoding="utf-8")
        beside.replace(self._path)

    def reached(self, step: int) -> None:
        """Wait until the run has done `step` steps."""

        def look() -> bool:
            path = self.run / "metrics.jsonl"
            return path.is_file() and path.read_text("utf-8").count('"split": "train"') >= step

        poll(f"step {step} of {self.run}", look, 300)

    def heard(self, job: int, attempt: int, times: int = 1) -> None:
        """Wait until both ranks of an attempt have heard so many signals."""

        def look() -> bool:
            path = self._path.with_suffix(".asked")
            said = path.read_text("utf-8").splitlines() if path.is_file() else []
            return all(said.count(f"{job} {attempt} {rank}") >= times for rank in (0, 1))

        poll(f"signals of attempt {attempt} of job {job}", look, 300)

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Let the run go on up to `step` steps, and enter when a checkpoint is being written,
        which ends afterwards."""
        keep = self._path.with_suffix(".keep")
        keep.touch()
        self.at(step)
        try:
            poll("the checkpoint", self._path.with_suffix(".saving").exists)
            yield
        finally:
            keep.unlink()


def shown(run: Path) -> str:
    """All logs of a run's jobs."""
    return "\n".join(f"{p.name}:\n{p.read_text()}" for p in sorted(run.glob("slurm/*.log")))


def pid_of(job: int, number: int) -> int | None:
    """The process of a rank."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"RANK={number}".encode()}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted <= set(
                (entry / "environ").read_bytes().split(b"\0")
            ):
                return int(entry.name)
        except OSError:
            continue
    return None


def test_a_job_gives_the_losses_of_one_process(
    submit: Submitter, recipe: Path, alone: list[float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    where = ("--nodes", "1", "--gpus_per_node", "2", "--out", run, "--follow")
    code, answer = submit.outcome(recipe, *where, "--engine.strategy", "zero2")
    assert code == 0, shown(run)
    assert answer["state"] == "COMPLETED"
    assert losses(run) == pytest.approx(alone, abs=1e-5)
    for number in range(2):
        assert (run / f"slurm/job-{answer['job']}-rank-{number}.log").is_file()


def test_preempted_again_and_again(
    submit: Submitter, cluster: Cluster, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Signals to the ranks (one more during the save), a requeue, a signal to the batch shell
    alone: the run goes on each time and is the same as an undisturbed one, bit for bit."""
    held = Held(tmp_path / "run")
    where = ("--nodes", "2", "--out", held.run, "--engine.strategy", "ddp")
    profile = submit.profile(command=held.command, environment=held.environment)
    held.at(3)
    job = submit(recipe, *where, "--profile", profile)
    held.reached(3)
    second = submit(recipe, *where, "--profile", profile)
    assert submit.end(second)["ExitCode"] == "2:0"
    assert "in use by" in (held.run / f"slurm/job-{second}-rank-0.log").read_text()
    cluster.ask("scancel", "--signal=USR1", str(job))
    held.heard(job, 0)
    with held.saving(8):
        cluster.ask("scancel", "--signal=USR1", str(job))
        held.heard(job, 0, times=2)
    submit.attempt(job, 1)
    held.reached(8)
    cluster.ask("scontrol", "requeue", str(job))
    held.heard(job, 1)
    held.at(13)
    submit.attempt(job, 2)
    held.reached(13)
    cluster.ask("scancel", "--batch", "--signal=USR1", str(job))
    held.heard(job, 2)
    held.at(STEPS)
    end = submit.end(job)
    assert end["JobState"] == "COMPLETED", shown(held.run)
    assert end["Restarts"] == "3", shown(held.run)
    said = (held.run / f"slurm/job-{job}.log").read_text()
    assert said.count("stopped early after a checkpoint") == 3, said
    assert_same_run(held.run, undisturbed)


def test_faults_of_a_rank_a_controller_and_a_node(
    submit: Submitter, cluster: Cluster, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """kill -9 of a rank; the controller dies and comes back; a node is lost: nothing more is lost
    than the steps since the last checkpoint, and those are done again alike."""
    held = Held(tmp_path / "run")
    profile = submit.profile(command=held.command, environment=held.environment, wait=5)
    held.at(7)
    job = submit(recipe, "--nodes", "2", "--out", held.run, "--profile", profile)
    held.reached(7)
    os.kill(poll("rank 1", lambda: pid_of(job, 1)), signal.SIGKILL)
    submit.attempt(job, 1)
    held.at(11)
    held.reached(11)
    cluster.kill("slurmctld")
    held.at(13)
    held.reached(13)
    cluster.start_controller()
    held.at(17)
    held.reached(17)
    cluster.ask("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    held.at(STEPS)
    end = submit.end(job)
    assert end["JobState"] == "COMPLETED", shown(held.run)
    assert end["Restarts"] == "2", shown(held.run)
    assert_same_run(held.run, undisturbed)


def test_other_ranks_and_another_strategy_go_on(
    submit: Submitter, cluster: Cluster, recipe: Path, alone: list[float], tmp_path: Path
) -> None:
    """ZeRO-2 on two nodes, then DDP on one node, then one process: one curve."""
    held = Held(tmp_path / "run")
    values = {"command": held.command, "environment": held.environment}
    profile = submit.profile(**values, requeue=False)
    for step, nodes, tasks, strategy in ((6, "2", "1", "zero2"), (14, "1", "2", "ddp")):
        held.at(step)
        where = ("--nodes", nodes, "--tasks_per_node", tasks, "--out", held.run)
        job = submit(recipe, *where, "--engine.strategy", strategy, "--profile", profile)
        held.reached(step)
        cluster.ask("scancel", "--signal=USR1", str(job))
        held.heard(job, 0)
        held.at(STEPS)
        assert submit.end(job)["ExitCode"] == "75:0", shown(held.run)
    job = submit(recipe, "--nodes", "1", "--out", held.run)
    assert submit.end(job)["JobState"] == "COMPLETED", shown(held.run)
    assert losses(held.run) == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_a_node_whose_slurmd_dies(
    submit: Submitter, cluster: Cluster, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Noticed by SLURM's own timeout; its rank lives on for a while and does no harm."""
    held = Held(tmp_path / "run")
    profile = submit.profile(command=held.command, environment=held.environment)
    held.at(7)
    job = submit(recipe, "--nodes", "2", "--out", held.run, "--profile", profile)
    held.reached(7)
    cluster.kill("node2")
    submit.attempt(job, 1)
    held.at(STEPS)
    end = submit.end(job)
    cluster.start_node("node2")
    assert (end["JobState"], end["NodeList"]) == ("COMPLETED", "node[1,3]"), shown(held.run)
    assert_same_run(held.run, undisturbed)
    poll("node2 back", lambda: cluster.idle() == 3)


OTHER = """
[ $RANK = 0 ] || set -- "$@" --optim.lr 0.5
exec {python} -m outmodal "$@"
"""


def test_ranks_with_another_configuration(
    submit: Submitter, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    """All leave with 2; rank 0's log says who differs, and in what."""
    run = tmp_path / "run"
    script = tmp_path / "other.sh"
    script.write_text(OTHER.format(python=sys.executable), encoding="utf-8")
    profile = submit.profile(command=["bash", str(script)])
    job = submit(recipe, "--nodes", "2", "--out", run, "--profile", profile)
    assert submit.end(job)["ExitCode"] == "2:0", shown(run)
    said = (run / f"slurm/job-{job}-rank-0.log").read_text("utf-8")
    assert "rank 1 on" in said
    assert "optim.lr" in said


@pytest.mark.slow
def test_a_rank_that_hangs(
    submit: Submitter, cluster: Cluster, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The watchdog shows where all ranks stand and ends them; the job goes on."""
    held = Held(tmp_path / "run")
    values = {"command": held.command, "environment": held.environment}
    profile = submit.profile(**values, wait=5)
    held.at(7)
    patience = ("--engine.hang_minutes", "0.5")
    job = submit(recipe, "--nodes", "2", "--out", held.run, "--profile", profile, *patience)
    held.reached(7)
    victim = poll("rank 1", lambda: pid_of(job, 1))
    os.kill(victim, signal.SIGSTOP)
    held.at(STEPS)
    submit.attempt(job, 1)
    assert submit.end(job)["JobState"] == "COMPLETED", shown(held.run)
    stacks = "\n".join(path.read_text("utf-8") for path in held.run.glob("hang-*.txt"))
    assert "rank 0" in stacks
    assert "rank 1" in stacks
    assert_same_run(held.run, undisturbed)
