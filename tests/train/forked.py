"""Training in processes of its own, cheaply: a server imports everything once and forks.

The server is a fresh interpreter, so nothing of the test runner is inherited. Each request is a
line of JSON: {"job": {...}, "ranks": n, "log": path} starts n ranks and answers their process
ids; {"wait": [pids]} answers their exit codes as soon as all have ended (negative: a signal).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


class ForkServer:
    """Client of the server; a context manager."""

    def __enter__(self) -> ForkServer:
        path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            env.pop(name, None)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.train.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=ROOT,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def start(self, job: Mapping[str, Any], ranks: int, log: Path) -> list[int]:
        """Start `ranks` processes; their output goes to `log`. Returns their ids."""
        pids: list[int] = self._ask({"job": dict(job), "ranks": ranks, "log": str(log)})
        return pids

    def wait(self, pids: Sequence[int]) -> list[int]:
        """Exit codes of processes."""
        codes: list[int] = self._ask({"wait": list(pids)})
        return codes

    def run(self, job: Mapping[str, Any], ranks: int, log: Path) -> None:
        """Run to the end; an assertion error shows the log where a rank fails."""
        codes = self.wait(self.start(job, ranks, log))
        assert codes == [0] * ranks, f"exit codes {codes}\n{log.read_text('utf-8')[-6000:]}"

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


PRELOADED = (
    "accelerate",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # every ZeRO engine imports it, slowly
    "torch.utils.tensorboard",
    "outmodal.train.run",
    "tests.train.plans",
)


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    jobs = importlib.import_module("tests.train.jobs")
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: Any = [_wait(pid) for pid in request["wait"]]
        else:
            answer = _start(jobs.run, request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


_held: dict[int, socket.socket] = {}
"""Last rank of a group -> what keeps its port from others (see `launch.local.held_port`)."""


def _start(run: Any, request: Mapping[str, Any]) -> list[int]:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    port = held.getsockname()[1]
    ranks = int(request["ranks"])
    pids = [_fork(run, request, rank, ranks, port) for rank in range(ranks)]
    _held[pids[-1]] = held
    return pids


def _wait(pid: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if pid in _held:
        _held.pop(pid).close()
    return code


def _fork(run: Any, request: Mapping[str, Any], rank: int, ranks: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if ranks > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(ranks),
                LOCAL_WORLD_SIZE=str(ranks),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        code = run(request["job"])
    except Exception:  # noqa: BLE001 (shown in the log; the exit code says that it failed)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
