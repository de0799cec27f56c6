"""Fresh processes: one an item, none left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outmodal.data.build.pool import available_cpus, in_fresh_processes
from outmodal.errors import UserError
from tests.data.processes import running

ROOT = Path(__file__).parents[3]


def identity(item: int) -> tuple[int, int]:
    return item, os.getpid()


def fail_first(item: int) -> int:
    if item == 0:
        raise UserError("item 0 is bad")
    time.sleep(60)
    return item


def test_every_item_has_a_process_of_its_own() -> None:
    results = list(in_fresh_processes(identity, range(5), 2, str, [__name__]))
    assert sorted(item for item, _ in results) == [0, 1, 2, 3, 4]
    assert len({pid for _, pid in results} | {os.getpid()}) == 6


def test_items_are_drawn_when_a_process_is_free() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(4):
            drawn.append(item)
            yield item

    results = in_fresh_processes(identity, items(), 1, str, [__name__])
    next(results)
    assert len(drawn) == 1
    assert len(list(results)) == 3


def test_no_items_need_no_process() -> None:
    assert list(in_fresh_processes(identity, [], 1, str)) == []
    assert available_cpus() >= 1


def test_a_failure_stops_the_others() -> None:
    with pytest.raises(UserError, match="item 0 is bad"):
        list(in_fresh_processes(fail_first, [0, 1], 2, str, [__name__]))


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    script = f"""
import os, signal, time
from pathlib import Path
from outmodal.data.build.pool import in_fresh_processes

def linger(path):
    path.write_text(str(os.getpid()))
    time.sleep(120)

def items():
    first = Path({str(tmp_path)!r}, "pid")
    yield first
    while not (first.exists() and first.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    list(in_fresh_processes(linger, items(), 2, str))
"""
    file = tmp_path / "script.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, str(file)], env=environment, check=False)
    pid = int((tmp_path / "pid").read_text())
    while running(pid):
        time.sleep(0.01)
