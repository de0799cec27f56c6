"""A child process that reads hostile bytes: bounded memory, watched time, and its death is seen.

The parent sends (target, bytes) and gets an answer for each. What a target may raise is in
`targets`; anything else, a hang, a crash or too much memory is a finding, with the input saved.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 60
"""Longest time of the processor for one input; the slowest honest one takes a hundredth of it."""
BUSY = 4
"""How many times as long an answer may take on a machine that has other things to do."""
SPARE = 3 << 30
"""Bytes of address space for one input, beyond what the imports take."""
GROWTH = 1536 << 20
"""Bytes that the resident set may grow to for one input, beyond the imports."""


class Finding(AssertionError):
    """An input that did what no input may do; it lies in the named file."""


class Guard:
    """Runs targets in a child; starts a new one after a death.

    Args:
        module: Where the child finds `attempt(target, bytes) -> (outcome, text)`.
    """

    def __init__(self, module: str = "tests.fuzz.targets") -> None:
        self._module = module
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, target: str, data: bytes) -> dict[str, Any]:
        """Return {"outcome": "fine" | "refused", "text": ..., "peak": bytes}; Finding otherwise."""
        child = self._start()
        assert child.stdin is not None
        name = target.encode()
        child.stdin.write(struct.pack("<II", len(name), len(data)) + name + data)
        child.stdin.flush()
        line = self._answer(child, BUSY * SECONDS)
        if line is None:
            self._end()
            raise _finding(target, data, f"no answer in {BUSY * SECONDS} s")
        if not line:
            code = child.wait()
            self._end()
            raise _finding(target, data, f"the process died with {code}")
        answer: dict[str, Any] = json.loads(line)
        if answer["outcome"] == "broken":
            raise _finding(target, data, answer["text"])
        if answer["seconds"] > SECONDS:
            raise _finding(target, data, f"no answer in {SECONDS} s of the processor")
        if answer["grown"] > GROWTH:
            self._end()  # the peak of a process never falls
            raise _finding(target, data, f"took {answer['grown'] >> 20} MiB")
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.guard", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parent.parent.parent,
                env=environment,
            )
            assert self._answer(self._child, 280), "the child did not start"
        return self._child

    @staticmethod
    def _answer(child: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """One line; b"" at the child's end, None if it does not come in time."""
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], seconds)
        return child.stdout.readline() if ready else None

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def _finding(target: str, data: bytes, what: str) -> Finding:
    digest = hashlib.sha256(data).hexdigest()[:12]
    folder = Path(os.environ.get("FUZZ_FINDINGS", tempfile.gettempdir())) / target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.bin"
    path.write_bytes(data)
    return Finding(f"{target}: {what}; the input is {path}")


def serve() -> None:
    """The child: answer until the parent hangs up."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what C libraries print must not mix with the answers
    attempt = importlib.import_module(sys.argv[1]).attempt
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _peak()
    _say(out, {"ready": True})
    stream = sys.stdin.buffer
    while header := stream.read(8):
        name, size = struct.unpack("<II", header)
        target = stream.read(name).decode()
        data = stream.read(size)
        begin = time.process_time()
        outcome, text = attempt(target, data)
        seconds = time.process_time() - begin
        answer = {"outcome": outcome, "text": text, "grown": _peak() - before, "seconds": seconds}
        _say(out, answer)


def _peak() -> int:
    """Most bytes that were resident. getrusage(2) would count what the parent had at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _say(out: Any, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    serve()
