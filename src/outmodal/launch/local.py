"""Several processes on this machine: start, forward signals, end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from outmodal.errors import UserError

GRACE_SECONDS = 20.0


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    SIGTERM, SIGINT and SIGUSR1 are passed on to all ranks.

    Returns:
        The exit code of the whole, and what the first rank wrote to stdout.
    """
    if count < 1:
        raise UserError(f"--nproc {count}: give the number of processes, 1 or more")
    port = free_port()
    command = [sys.executable, "-m", "outmodal", *argv]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as first:
        ranks: list[subprocess.Popen[bytes]] = []
        with _forwarded_signals(ranks):  # before the first of them runs: none is left behind
            for rank in range(count):
                out = first if rank == 0 else subprocess.DEVNULL
                ranks.append(
                    subprocess.Popen(command, env=environment(rank, count, port), stdout=out)
                )
            code = _wait(ranks)
        first.seek(0)
        return code, first.read()


@contextmanager
def _forwarded_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {kind: signal.signal(kind, forward) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    failed_at: float | None = None
    result = 0
    while any(rank.poll() is None for rank in ranks):
        codes = [rank.poll() for rank in ranks]
        bad = next((code for code in codes if code not in (None, 0, 75)), None)
        if bad is not None and failed_at is None:
            failed_at, result = time.monotonic(), bad
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            _end(ranks)
        time.sleep(0.05)
    codes = [rank.returncode for rank in ranks]
    if 2 in codes:
        return 2
    result = result or next((code for code in codes if code), 0)
    return result if result >= 0 else 1


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
