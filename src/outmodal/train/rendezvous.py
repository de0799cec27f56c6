"""Meeting the other ranks: what can go wrong is said with the address, the host and the remedy."""

from __future__ import annotations

import datetime
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from outmodal.errors import UserError

_SLACK = 1.0  # seconds, so that the store's own words come first


def key_space() -> str:
    """Prefix of this attempt of this job in a store.

    Each attempt of an elastic launcher needs its own: gloo otherwise finds the dead attempt's
    addresses in the store and hangs. Two jobs that chose one port must not mix either.
    """
    env = os.environ
    job = env.get("SLURM_JOB_ID") or env.get("TORCHELASTIC_RUN_ID", "")
    return f"outmodal/{job}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def shared_store(rank: int, size: int, timeout: datetime.timedelta) -> Store:
    """Join the store at MASTER_ADDR:MASTER_PORT, or open it there as rank 0.

    Raises:
        UserError: The port is no port or in use, the address does not resolve, or nothing
            answers there within `timeout`.
    """
    address, port = os.environ["MASTER_ADDR"], _port(os.environ["MASTER_PORT"])
    _resolve(rank, address, port)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not agent
    try:
        return _open(address, port, size, serves, timeout)
    except RuntimeError as error:
        if serves and "EADDRINUSE" in str(error):
            remedy = "another process listens there: choose another port (MASTER_PORT)"
        elif serves:
            remedy = "rank 0 must run on the host that MASTER_ADDR names: set it to that"
        else:
            remedy = (
                f"rank 0 did not answer within {_minutes(timeout)}: see whether it started, "
                "whether MASTER_ADDR names its host, and whether a firewall is between (for slow "
                "starts raise engine.timeout)"
            )
        raise _failed(rank, address, port, remedy) from error


@contextmanager
def meeting(store: Store, rank: int, size: int, timeout: datetime.timedelta) -> Iterator[Store]:
    """Give the store to make a process group with; failures name the ranks that did not come.

    Raises:
        UserError: Not all ranks met within `timeout`.
    """
    own = PrefixStore(key_space(), store)
    if size == 1:
        yield own
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        own.set(f"here/{rank}", socket.gethostname())
        yield own
    except RuntimeError as error:
        absent = _absent(own, size)
        if absent is None:
            remedy = f"rank 0 left while the ranks met ({error}): its own message says why"
        elif absent:
            remedy = (
                f"rank {', '.join(map(str, absent))} of {size} did not come within "
                f"{_minutes(timeout)}: see their logs (for slow starts raise engine.timeout)"
            )
        else:
            remedy = (
                f"all {size} ranks came but could not connect to each other ({error}): see "
                "whether their hosts resolve each other's names and whether a firewall is between"
            )
        raise _failed(rank, address, port, remedy) from error


def _open(
    address: str, port: int, size: int, serves: bool, timeout: datetime.timedelta
) -> TCPStore:
    """A store's own timeout does not cover a stranger that listens there and never answers."""
    found: list[TCPStore | RuntimeError] = []

    def connect() -> None:
        try:
            found.append(TCPStore(address, port, size, serves, timeout, wait_for_workers=False))
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=connect, name="rendezvous", daemon=True)
    thread.start()
    thread.join(timeout.total_seconds() + _SLACK)
    answer = found[0] if found else RuntimeError("no answer")
    if isinstance(answer, RuntimeError):
        raise answer
    return answer


def _absent(store: Store, size: int) -> list[int] | None:
    """Ranks that never said that they are here; None where the store is gone."""
    try:
        return [rank for rank in range(size) if not store.check([f"here/{rank}"])]
    except RuntimeError:
        return None


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UserError(f"MASTER_PORT={text} is no port: give a number from 1 to 65535")
    return int(text)


def _resolve(rank: int, address: str, port: int) -> None:
    """c10d would try again in silence until its timeout."""
    try:
        socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        remedy = (
            f"this host cannot resolve '{address}' ({error.strerror or error}): mend its DNS or "
            "/etc/hosts, or set MASTER_ADDR to an address"
        )
        raise _failed(rank, address, port, remedy) from error


def _failed(rank: int, address: str, port: int, remedy: str) -> UserError:
    return UserError(
        f"rank {rank} on {socket.gethostname()} cannot join the others at {address}:{port}: "
        f"{remedy}"
    )


def _minutes(timeout: datetime.timedelta) -> str:
    return f"{timeout.total_seconds() / 60:g} min"
