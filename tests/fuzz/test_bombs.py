"""Bombs are refused with a reason, in seconds and in bounded memory; nothing leaves the folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.bombs import ARRAYS, ESCAPES, FILMS, IMAGES, SOUNDS, TARS
from tests.fuzz.guard import Guard

HARMLESS = {
    # What is read of these is small, and right.
    "mp4 of 65535 squared", "mp4 of 2^32 frames", "mp4 of 2^32 chunks",
    "up", "absolute", "symbolic link", "hard link", "device", "pipe", "folder",
    "pax path out", "pax path of 1 MB", "pax record that lies",
}  # fmt: skip
SLOW = ("avi of 1.1 GB", "gif of many frames", "png 60000 squared")
CASES = {**IMAGES, **SOUNDS, **ARRAYS, **FILMS, **TARS, **ESCAPES}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in CASES]
)
def test_bombs_are_refused(guard: Guard, name: str) -> None:
    target, make = CASES[name]
    answer = guard.run(target, made(make))
    assert answer["outcome"] == ("fine" if name in HARMLESS else "refused"), answer


def made(make: Callable[[], bytes]) -> bytes:
    data = make()
    assert len(data) < 1 << 27
    return data
