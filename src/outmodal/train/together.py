"""What one process does for all, or all do alike: a mistake of one is everybody's, said once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from outmodal.errors import UserError
from outmodal.train import gather


def on_main(act: Callable[[], Any]) -> Any:
    """Run `act` on the main process; return its JSON-able result, or raise its UserError, on
    every rank. Also a barrier."""
    if gather.is_main():
        try:
            message = [act(), None, False]
        except UserError as error:
            message = [None, str(error), False]
        except BaseException as error:
            gather.broadcast_object([None, f"{type(error).__name__}: {error}", True])
            raise
    else:
        message = []
    answer, problem, fatal = gather.broadcast_object(message)
    if fatal:
        raise RuntimeError(f"the main process failed: {problem}")
    if problem is not None:
        raise shared_error(problem)
    return answer


def on_all(act: Callable[[], Any]) -> Any:
    """Run `act`, which must not be collective, on every rank; return this rank's result.

    Raises:
        UserError: Any rank raised one; all raise that of the first, which says where it stands
            unless that is the main process.
    """
    answer, problem = None, ""
    try:
        answer = act()
    except UserError as error:
        problem = str(error)
    problems = gather.all_gather_objects([problem, f"{socket.gethostname()} (rank {{}})"])
    for rank, (said, place) in enumerate(problems):
        if said:
            raise shared_error(f"on {place.format(rank)}: {said}" if rank else said)
    return answer


def shared_error(message: str) -> UserError:
    """The mistake that every rank raises together: only the main process shows it."""
    error = UserError(message)
    error.quiet = not gather.is_main()
    return error
