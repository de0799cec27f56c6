"""Several processes on this machine: start, forward signals, end together."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from outmodal.errors import StoppedEarly, UserError

GRACE_SECONDS = 20.0
_STOPPED = StoppedEarly.exit_code
_STOPS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def held_port() -> Iterator[int]:
    """A TCP port that nobody else is given while entered, and that a rank can listen on.

    A socket that is bound and does not listen keeps the port: the system passes it over where it
    chooses one itself, and lets in only who, as rendezvous do, shares addresses.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("", 0))
        yield int(held.getsockname()[1])


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables that torch.distributed's `env://` rendezvous reads."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_local(argv: Sequence[str], count: int) -> tuple[int, str]:
    """Run `python -m outmodal ARGV` as `count` ranks.

    A rank that fails ends the others after a grace period, and its exit code is the result;
    SIGTERM, SIGINT and SIGUSR1 are passed on to all ranks. One that dies of a SIGTERM or SIGUSR1
    that was passed on was asked to stop before it could listen, or after it was done: that is 75.

    Returns:
        The exit code of the whole, and what the first rank wrote to stdout.
    """
    if count < 1:
        raise UserError(f"--nproc {count}: give the number of processes, 1 or more")
    command = [sys.executable, "-m", "outmodal", *argv]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as first, held_port() as port:
        ranks: list[subprocess.Popen[bytes]] = []
        with _forwarded_signals(ranks) as asked:  # before the first of them runs
            for rank in range(count):
                out = first if rank == 0 else subprocess.DEVNULL
                ranks.append(
                    subprocess.Popen(command, env=environment(rank, count, port), stdout=out)
                )
                for number in list(asked):  # came before it was one of them; twice does no harm
                    ranks[-1].send_signal(number)
            code = _wait(ranks, asked)
        first.seek(0)
        return code, first.read()


@contextmanager
def _forwarded_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals on while entered; gives those that came."""
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    kinds = (*_STOPS, signal.SIGINT)
    before = {kind: signal.signal(kind, forward) for kind in kinds}
    try:
        yield asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], asked: Sequence[int]) -> int:
    result, end = 0, math.inf
    deaths: dict[int, int] = {}
    while True:
        codes = [rank.poll() for rank in ranks]
        bad = next((code for code in codes if code not in (None, 0, _STOPPED)), None)
        if bad is not None and not result:
            result, end = bad, time.monotonic() + GRACE_SECONDS
        if time.monotonic() > end:
            _end(ranks)
        else:
            deaths = {rank: -code for rank, code in enumerate(codes) if code and code < 0}
        if None not in codes:
            break
        time.sleep(0.05)
    _tell_deaths({rank: number for rank, number in deaths.items() if number not in asked})
    if 2 in codes:
        return 2
    if -result in _STOPS and -result in asked:
        return _STOPPED
    return max(result, 1) if result else max(code or 0 for code in codes)


def _tell_deaths(deaths: Mapping[int, int]) -> None:
    """Say what ended ranks that could say nothing themselves."""
    for rank, number in deaths.items():
        note = ", as a system does that is short of memory" if number == signal.SIGKILL else ""
        name = signal.Signals(number).name
        sys.stderr.write(f"outmodal: rank {rank} was ended by {name}{note}\n")


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
