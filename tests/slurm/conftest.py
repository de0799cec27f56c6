"""A cluster for each module, jobs submitted to it as a user would, and a tiny recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from outmodal.launch.cli import main
from tests.slurm.cluster import Cluster, missing, poll

REQUIRED = "OUTMODAL_REQUIRE_SLURM"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of eight cores and two GPUs that are none, for this module alone."""
    lacking = missing()
    if lacking and os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1 but {', '.join(lacking)} not installed: slurm-wlm and munge")
    if lacking:
        pytest.skip(f"SLURM is not installed: no {', '.join(lacking)}")
    with Cluster() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", running.env["SLURM_CONF"])
        patch.setenv("OMP_NUM_THREADS", "1")
        running.env["OMP_NUM_THREADS"] = "1"
        yield running


class Submitter:
    """Submits as `outmodal submit` does, in this process, and follows attempts."""

    def __init__(self, cluster: Cluster, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        self.cluster, self.capfd, self.folder = cluster, capfd, folder

    def profile(self, **values: Any) -> Path:
        """A profile file."""
        path = self.folder / f"profile-{len(list(self.folder.glob('profile-*')))}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def __call__(self, *args: str | Path) -> int:
        """Submit; the number of the job."""
        code, answer = self.outcome(*args)
        assert code == 0, answer
        return int(answer["job"])

    def outcome(self, *args: str | Path) -> tuple[int, Mapping[str, Any]]:
        """Exit code and JSON of the command."""
        self.capfd.readouterr()
        code = main(["submit", *map(str, args), "--json"])
        said = self.capfd.readouterr()
        return code, json.loads(said.out.strip().splitlines()[-1])

    def attempt(self, job: int, number: int) -> None:
        """Wait until attempt `number` (from 0) of a job runs."""

        def look() -> bool:
            fields = self.cluster.job(job)
            return fields.get("JobState") == "RUNNING" and int(fields["Restarts"]) == number

        try:
            poll(f"attempt {number} of job {job}", look, 300)
        except AssertionError as error:
            error.add_note(f"{self.cluster.job(job)}\n{self.cluster.logs()}")
            raise

    def end(self, job: int, patience: float = 300.0) -> Mapping[str, str]:
        """Wait for the end of a job."""

        def look() -> Mapping[str, str] | None:
            fields = self.cluster.job(job)
            ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
            return fields if fields.get("JobState") in ended else None

        return poll(f"end of job {job}", look, patience)


@pytest.fixture
def submit(cluster: Cluster, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Submitter:
    """Submit a job."""
    return Submitter(cluster, capfd, tmp_path)
