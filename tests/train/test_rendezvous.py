"""Ranks that cannot meet: one sentence with the address, the host and the remedy, in time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from outmodal.errors import UserError
from outmodal.train import gather, rendezvous
from outmodal.train.rendezvous import key_space, shared_store
from tests.train.forked import ForkServer

MINUTES = 0.1


def unknown(*_: Any, **__: Any) -> None:
    """A resolver that answers at once: real ones take their time, and some answer anything."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def meet(job: Mapping[str, Any]) -> None:
    """Join the others with job["env"] instead of what the fork server says."""
    os.environ.update(job.get("env", {}))
    if os.environ["RANK"] == job.get("absent"):
        return
    rendezvous._SLACK = job.get("slack", rendezvous._SLACK)
    if "unknown" in job:
        socket.getaddrinfo = unknown  # type: ignore[assignment]
    gather.open_world("cpu", MINUTES)


def failed(server: ForkServer, log: Path, **job: Any) -> str:
    """What ranks say that end long before the ten minutes of a run."""
    begin = time.monotonic()
    codes = server.wait(server.start({"call": f"{__name__}:meet", **job}, 2, log))
    text = log.read_text("utf-8")
    assert 2 in codes, text
    assert not set(codes) - {0, 2}, text
    assert time.monotonic() - begin < 60 * MINUTES + 180
    return text


def test_a_port_in_use(server: ForkServer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        text = failed(server, tmp_path / "log", env={"MASTER_PORT": port})
    host = socket.gethostname()
    assert f"rank 0 on {host} cannot join the others at 127.0.0.1:{port}: another process" in text
    assert "choose another port (MASTER_PORT)" in text


def test_a_host_that_does_not_resolve(server: ForkServer, tmp_path: Path) -> None:
    address = {"MASTER_ADDR": "no-such-host.invalid"}
    text = failed(server, tmp_path / "log", env=address, unknown=True)
    for rank in (0, 1):
        assert f"rank {rank} on {socket.gethostname()} cannot join the others at no-such" in text
    assert "/etc/hosts" in text


def test_a_rank_that_never_comes(server: ForkServer, tmp_path: Path) -> None:
    text = failed(server, tmp_path / "log", absent="1", slack=60.0)
    assert "rank 1 of 2 did not come within 0.1 min" in text
    assert "engine.timeout" in text


def test_rank_0_never_comes(server: ForkServer, tmp_path: Path) -> None:
    text = failed(server, tmp_path / "log", absent="0", slack=60.0)
    assert "rank 0 did not answer within 0.1 min" in text


@pytest.mark.parametrize("port", ["", "x", "0", "70000"])
def test_a_port_that_is_none(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    import datetime

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match="is no port"):
        shared_store(0, 2, datetime.timedelta(seconds=1))


def test_jobs_and_attempts_have_their_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    spaces = [key_space()]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    spaces.append(key_space())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    spaces.append(key_space())
    assert len(set(spaces)) == 3
