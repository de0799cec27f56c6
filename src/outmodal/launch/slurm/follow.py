"""Following a job: the new lines of its logs, and its state, until it has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from outmodal.errors import UserError
from outmodal.launch.slurm.cluster import ask, fields_of

ENDED = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "BOOT_FAIL",
        "DEADLINE",
    }
)


@dataclass(frozen=True)
class JobState:
    """What SLURM knows of a job; `code` is its exit code as a shell would show it."""

    state: str
    reason: str
    restarts: int
    code: int

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self.state in ENDED


def job_state(job: int) -> JobState | None:
    """The state of a job; None where SLURM does not know it (any more), or does not answer."""
    try:
        fields = fields_of(ask("scontrol", "--oneliner", "show", "job", str(job)).split("\n")[0])
    except UserError:
        return None
    status, _, number = fields.get("ExitCode", "0:0").partition(":")
    code = int(status) or (128 + int(number) if int(number or 0) else 0)
    state = fields.get("JobState", "")
    failed = state in ENDED and state != "COMPLETED"
    return JobState(
        state, fields.get("Reason", ""), int(fields.get("Restarts", "0")), code or int(failed)
    )


class Tail:
    """New text of a file that may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> str:
        """What has been added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                raw = file.read()
        except OSError:
            return ""
        self._at += len(raw)
        return raw.decode("utf-8", errors="replace")


def follow(
    job: int,
    logs: Sequence[Path],
    *,
    pause: float = 2.0,
    patience: float = 300.0,
    state_of: Callable[[int], JobState | None] = job_state,
) -> JobState:
    """Show logs on stdout and changes of state on stderr until the job has ended.

    Args:
        job: Number of the job.
        logs: Files to show from their present end on.
        pause: Seconds between two looks.
        patience: Seconds for which SLURM may not know the job or not answer.

    Raises:
        UserError: SLURM has not answered for `patience` seconds.
    """
    tails = [Tail(path) for path in logs]
    for tail in tails:
        tail.read()
    shown: tuple[str, int] | None = None
    heard = time.monotonic()
    while True:
        now = state_of(job)
        for tail in tails:
            sys.stdout.write(tail.read())
        sys.stdout.flush()
        if now is not None:
            heard = time.monotonic()
            if (now.state, now.restarts) != shown:
                shown = (now.state, now.restarts)
                reason = f" ({now.reason})" if now.reason not in ("", "None") else ""
                sys.stderr.write(f"job {job}: {now.state}{reason}, restarts {now.restarts}\n")
            if now.ended:
                return now
        elif time.monotonic() - heard > patience:
            raise UserError(
                f"SLURM has not answered about job {job} for {patience:.0f} s: look at "
                f"`sacct -j {job}` and at {logs[0].parent}"
            )
        time.sleep(pause)
