"""The board of what readers read: seen from other processes, also when a reader is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading

from outmodal.data import board as board_module
from outmodal.data.board import SLOT, Board, Slot


def read_and_die(slot: Slot) -> None:
    slot.reading("train-000007.tar", "k042")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_slot_says_what_its_reader_reads_until_it_is_done() -> None:
    board = Board(2, 3)
    first, second = board.slot(0, 2, 11), board.slot(1, 0, 12)
    first.reading("a.tar")
    second.reading("b.tar", "schlüssel")
    found = {(e.worker, e.thread): (e.pid, e.shard, e.key) for e in board.entries()}
    assert found == {(0, 2): (11, "a.tar", ""), (1, 0): (12, "b.tar", "schlüssel")}
    assert [e.shard for e in board.entries(1)] == ["b.tar"]
    first.idle()
    assert [e.shard for e in board.entries()] == ["b.tar"]


def test_long_names_are_cut_and_leave_their_neighbours_alone() -> None:
    board = Board(1, 3)
    slots = [board.slot(0, n, 1) for n in range(3)]
    for slot in slots:
        slot.reading("s", "k")
    slots[1].reading("x" * 3 * SLOT + "end.tar", "y" * 3 * SLOT)
    found = {e.thread: (e.shard, e.key) for e in board.entries()}
    assert found[0] == found[2] == ("s", "k")
    assert found[1][0].endswith("end.tar")
    assert len(found[1][0]) + len(found[1][1]) < SLOT


def test_what_a_killed_process_read_is_still_there() -> None:
    board = Board(1, 1)
    process = multiprocessing.get_context("fork").Process(
        target=read_and_die, args=(board.slot(0, 0, 99),)
    )
    process.start()
    process.join()
    (entry,) = board.entries()
    assert process.exitcode == -signal.SIGKILL
    assert str(entry).startswith("reader 0.0 (process 99): train-000007.tar, sample 'k042', for ")


def test_boards_are_made_while_another_thread_reports() -> None:
    """A report comes from a thread of its own, whatever the training does meanwhile."""
    done, failures = threading.Event(), list[BaseException]()
    held = [Board(1, 1) for _ in range(200)]

    def report() -> None:
        while not done.is_set():
            try:
                board_module.readings()
            except RuntimeError as error:
                failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reporter = threading.Thread(target=report)
    reporter.start()
    try:
        for _ in range(3000):
            held.append(Board(1, 1))
    finally:
        done.set()
        reporter.join()
        sys.setswitchinterval(before)
    assert failures == []


class Stacks:
    def text(self) -> str:
        return "stacks of workers"


def test_the_report_holds_every_board_with_what_it_was_given_to_add() -> None:
    board, stacks = Board(1, 1), Stacks()
    board.explain(stacks.text)
    board.slot(0, 0, 5).reading("seen.tar", "k1")
    assert "seen.tar, sample 'k1'" in board_module.report()
    assert "stacks of workers" in board_module.report()
    del stacks
    assert "stacks of workers" not in board_module.report()
