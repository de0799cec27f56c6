"""A job for the fork server: `outmodal eval`, several times in one group of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outmodal.launch.cli import main


def evaluate(job: Mapping[str, Any]) -> None:
    """Run each of job["commands"]; raises where one fails."""
    for words in job["commands"]:
        code = main(["eval", *words])
        if code != job.get("code", 0):
            raise RuntimeError(f"{words}: exit code {code}")
