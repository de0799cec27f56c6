"""One guarded child for all tests of this folder: its imports take seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.guard import Guard


@pytest.fixture(scope="session")
def guard() -> Iterator[Guard]:
    with Guard() as guard:
        yield guard
