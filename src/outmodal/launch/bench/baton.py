"""Loops measured in turns within one process: each runs a few steps, then waits for the others.

A loop that cannot be called step by step, such as the engine's, runs in a thread of its own and
asks the baton before every step. So it is measured as it is, and what slows the machine down slows
all loops down alike.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from outmodal.launch.bench.timing import Spent
from outmodal.train.progress import Progress

Loop = Callable[[Callable[[], None]], None]
"""Takes what it has to call before each of its steps, and goes on for ever."""


_AWAKE_AFTER = 0.2
"""Seconds after which a signal is noticed at the latest."""


class _EnoughError(Exception):
    """Ends a loop whose turns are over."""


class Baton:
    """Hands the turn from loop to loop; each round has an order of its own, drawn at random, since
    a loop's turn also costs what the one before it left behind (caches, the allocator's pages).

    Args:
        names: The loops.
        steps: Steps of a turn.
        turns: Turns that each loop has.
        device: What a turn waits for at its beginning and end.
        cpu: Seconds of CPU time spent so far.
        progress: Advances between turns.

    Attributes:
        spent: Loop -> what each of its turns took.
    """

    def __init__(
        self,
        names: list[str],
        steps: int,
        turns: int,
        device: torch.device,
        cpu: Callable[[], float],
        progress: Progress,
    ) -> None:
        self._cpu = cpu
        self._steps, self._turns, self._device = steps, turns, device
        draw = random.Random(0)
        self._order = (name for _ in range(turns) for name in draw.sample(names, len(names)))
        self._turn = threading.Condition()
        self._whose, self._failed = next(self._order), False
        self._done = dict.fromkeys(names, 0)
        self._began = Spent(0.0, 0.0)
        self._progress = progress
        self.spent: dict[str, list[Spent]] = {name: [] for name in names}

    def step(self, name: str) -> None:
        """Wait until a loop may take its next step; raises _EnoughError after its last one."""
        if self._failed:
            raise _EnoughError
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
            self._turn.wait_for(lambda: self._failed or self._whose == name)
            if self._failed:
                raise _EnoughError
        self._began = self._opening()

    def _close(self, name: str) -> None:
        now = self._closing()
        self.spent[name].append(Spent(now.wall - self._began.wall, now.cpu - self._began.cpu))
        self._done[name] = 0
        self._progress.advance(name, {})
        with self._turn:
            self._whose = next(self._order, "")
            self._turn.notify_all()
        if len(self.spent[name]) == self._turns:
            raise _EnoughError

    def _opening(self) -> Spent:
        """The clocks once they have been read: reading CPU time may itself take some."""
        self._finish()
        before = time.process_time()
        spent = self._cpu()
        return Spent(time.perf_counter(), spent + time.process_time() - before)

    def _closing(self) -> Spent:
        self._finish()
        return Spent(time.perf_counter(), self._cpu())

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def run_in_turns(
    loops: Mapping[str, Loop],
    steps: int,
    rounds: int,
    device: torch.device,
    cpu: Callable[[], float] = time.process_time,
) -> dict[str, list[Spent]]:
    """What every turn of every loop took, but for the first, which warms up.

    Args:
        loops: By name.
        steps: Of a turn.
        rounds: Turns of each loop that count.
        device: Where they run.
        cpu: Seconds of CPU time spent so far: this process's, or with what it has started.

    Raises:
        Exception: What a loop raised.
    """
    turns = rounds + 1
    progress = Progress(turns * len(loops))
    baton = Baton(list(loops), steps, turns, device, cpu, progress)
    failures: list[BaseException] = []
    threads = torch.get_num_threads()
    ended = {name: threading.Event() for name in loops}

    def run(name: str, loop: Loop) -> None:
        torch.set_num_threads(threads)  # each thread has a number of its own
        try:
            loop(lambda: baton.step(name))
            raise RuntimeError(f"loop '{name}' has come to an end of its own")
        except _EnoughError:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)
            baton.fail()
        finally:
            ended[name].set()

    running = [threading.Thread(target=run, args=item, name=item[0]) for item in loops.items()]
    with progress:
        _run_all(running, ended, baton)
    if failures:
        raise failures[0]
    return {name: spent[1:] for name, spent in baton.spent.items()}


def _run_all(
    running: Sequence[threading.Thread], ended: Mapping[str, threading.Event], baton: Baton
) -> None:
    """Start threads and wait until they have ended, after an interrupt too: it lets them finish
    their step. (Events, since an interrupted `Thread.join` of CPython 3.11 takes a thread that runs
    for one that has ended; with a limit, since a signal that arrives just before a thread sleeps on
    a lock does not wake it.)"""
    interrupted: BaseException | None = None
    try:
        for thread in running:
            thread.start()
    except BaseException as error:  # noqa: BLE001 - raised below
        interrupted = error
    left = list(running)
    while left:
        try:
            if interrupted is not None:
                baton.fail()
            if left[0].ident is None or ended[left[0].name].wait(_AWAKE_AFTER):
                del left[0]
        except BaseException as error:  # noqa: BLE001 - raised below
            interrupted = interrupted or error
    if interrupted is not None:
        raise interrupted
