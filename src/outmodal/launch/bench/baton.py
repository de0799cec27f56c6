"""Loops measured in turns within one process: each runs a few steps, then waits for the others.

A loop that cannot be called step by step, such as the engine's, runs in a thread of its own and
asks the baton before every step. So it is measured as it is, and what slows the machine down slows
all loops down alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch

from outmodal.launch.bench.timing import Spent

Loop = Callable[[Callable[[], None]], None]
"""Takes what it has to call before each of its steps, and goes on for ever."""


class _EnoughError(Exception):
    """Ends a loop whose turns are over."""


class Baton:
    """Hands the turn from loop to loop.

    Args:
        names: The loops, in the order of their turns.
        steps: Steps of a turn.
        turns: Turns that each loop has.
        device: What a turn waits for at its beginning and end.

    Attributes:
        spent: Loop -> what each of its turns took.
    """

    def __init__(self, names: list[str], steps: int, turns: int, device: torch.device) -> None:
        self._names, self._steps, self._turns, self._device = names, steps, turns, device
        self._turn = threading.Condition()
        self._at, self._failed = 0, False
        self._done = dict.fromkeys(names, 0)
        self._began = Spent(0.0, 0.0)
        self.spent: dict[str, list[Spent]] = {name: [] for name in names}

    def step(self, name: str) -> None:
        """Wait until a loop may take its next step; raises _EnoughError after its last one."""
        if self._done[name] == self._steps:
            self._close(name)
        if not self._done[name]:
            self._open(name)
        self._done[name] += 1

    def fail(self) -> None:
        """Let all loops end."""
        with self._turn:
            self._failed = True
            self._turn.notify_all()

    def _open(self, name: str) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._failed or self._names[self._at] == name)
            if self._failed:
                raise _EnoughError
        self._began = self._now()

    def _close(self, name: str) -> None:
        now = self._now()
        self.spent[name].append(Spent(now.wall - self._began.wall, now.cpu - self._began.cpu))
        self._done[name] = 0
        with self._turn:
            self._at = (self._at + 1) % len(self._names)
            self._turn.notify_all()
        if len(self.spent[name]) == self._turns:
            raise _EnoughError

    def _now(self) -> Spent:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Spent(time.perf_counter(), time.process_time())


def run_in_turns(
    loops: Mapping[str, Loop], steps: int, turns: int, device: torch.device
) -> dict[str, list[Spent]]:
    """What every turn of every loop took.

    Raises:
        Exception: What a loop raised.
    """
    baton = Baton(list(loops), steps, turns, device)
    failures: list[BaseException] = []
    threads = torch.get_num_threads()

    def run(name: str, loop: Loop) -> None:
        torch.set_num_threads(threads)  # each thread has a number of its own
        try:
            loop(lambda: baton.step(name))
        except _EnoughError:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)
            baton.fail()

    running = [threading.Thread(target=run, args=item) for item in loops.items()]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]
    return baton.spent
