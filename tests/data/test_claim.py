"""A folder for one request: who has forked children gives it back all the same."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from outmodal.data.claim import claimed
from outmodal.errors import UserError

FORK = multiprocessing.get_context("fork")
REQUEST = {"asked": 1}


def wait(go: Connection) -> None:
    go.recv()


def test_a_child_that_was_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    heard, go = FORK.Pipe()
    with claimed(tmp_path, ".work", REQUEST):
        child = FORK.Process(target=wait, args=(heard,))
        child.start()
    with claimed(tmp_path, ".work", REQUEST), pytest.raises(UserError, match="another process"):
        with claimed(tmp_path, ".work", REQUEST):
            pass
    go.send(None)
    child.join()
    assert child.exitcode == 0


def claim_and_die(out: Path, heard: Connection, told: Connection) -> None:
    """Be gone without giving the folder back, but not without a child."""
    with claimed(out, ".work", REQUEST):
        child = os.fork()
        if not child:
            told.send(None)
            heard.recv()
        os._exit(0)


def test_nor_does_the_child_of_a_process_that_was_killed(tmp_path: Path) -> None:
    heard, go = FORK.Pipe()
    begun, told = FORK.Pipe()
    owner = FORK.Process(target=claim_and_die, args=(tmp_path, heard, told))
    owner.start()
    owner.join()
    begun.recv()  # the child runs
    with claimed(tmp_path, ".work", REQUEST):
        go.send(None)
