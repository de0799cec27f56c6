"""Runs that several tests look at, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.report.runs import trained


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of cox, erm and align; name -> folder. Read only."""
    return trained(tmp_path_factory.mktemp("report"), ("cox", "erm", "align"))
