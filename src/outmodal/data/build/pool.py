"""Work done by one fresh process an item.

A C library with global state (speech synthesis) gives the same bytes for the same calls only in
a process that it has not been used in. So no process does two items. The processes are forked
from a clean server that has the modules already imported: one costs about 10 ms, not seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

from outmodal.data.orphans import end_with_parent
from outmodal.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_DONE, _USER_ERROR = range(2)


class WorkerDied(RuntimeError):
    """A process ended for a reason that is not the user's input; its traceback is on stderr."""


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def in_fresh_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    label: Callable[[Item], str],
    preload: Sequence[str] = (),
) -> Iterator[Result]:
    """Yield `work(item)` of every item, in the order in which they are done.

    Args:
        work: A function that a fresh process can import.
        items: Drawn one by one when a process becomes free, and sent to it.
        workers: Processes at a time; 0 is one a CPU.
        label: Names an item in error messages.
        preload: Modules to import once, beside the main one, before processes are forked.

    Raises UserError as `work` does, and WorkerDied for anything else, with the others stopped.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *preload])
    waiting = iter(items)
    running: dict[Connection, tuple[ForkServerProcess, Item]] = {}
    try:
        while True:
            while len(running) < (workers or available_cpus()):
                try:
                    item = next(waiting)
                except StopIteration:
                    break
                receiver, process = _start(context, work, item)
                running[receiver] = (process, item)
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, item = running[ready]
                result = _receive(ready, process, label(item))
                del running[ready]
                ready.close()
                yield result
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _start(
    context: multiprocessing.context.ForkServerContext,
    work: Callable[[Item], Any],
    item: Item,
) -> tuple[Connection, ForkServerProcess]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(work, item, sender), daemon=True)
    process.start()
    sender.close()  # so that the receiver sees the end of the file if the process dies
    return receiver, process


def _receive(receiver: Connection, process: ForkServerProcess, label: str) -> Any:
    try:
        outcome, content = receiver.recv()
    except EOFError:
        process.join()
        raise WorkerDied(
            f"{label}: its process ended with {_cause(process.exitcode)}; run the same command "
            "again to go on, with fewer workers if memory was short"
        ) from None
    process.join()
    if outcome == _USER_ERROR:
        raise UserError(content)
    return content


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _serve(work: Callable[[Item], Any], item: Item, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and stops this process
    end_with_parent()  # so that nothing of a killed build goes on
    try:
        outcome, content = _DONE, work(item)
    except UserError as error:
        outcome, content = _USER_ERROR, str(error)
    sender.send((outcome, content))  # anything else leaves its traceback on stderr
