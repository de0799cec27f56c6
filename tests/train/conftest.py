"""A fork server and a tiny data set, shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.plans import tiny_data


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Starts trainings in processes of their own."""
    with ForkServer() as running:
        yield running


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a data set with 96 + 20 samples of `pose`."""
    return tiny_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a data set with `force` and `pose`, 96 + 20 samples; some lack one."""
    missing = {"force": range(0, 96, 11), "pose": range(5, 96, 13)}
    root = tmp_path_factory.mktemp("pairs") / "tiny"
    return str(make_tiny(root, 96, 4, ("force", "pose"), test=20, missing=missing).root)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep derived files out of the user's cache."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("OUTMODAL_CACHE", str(folder))
    yield folder
    patch.undo()
