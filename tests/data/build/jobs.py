"""Sources for tests of the build frame; their jobs run in processes that import this module."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outmodal.data.build.common import Add, BuildPlan, Facts
from outmodal.data.encode import encode_text
from outmodal.data.manifest import Modality
from outmodal.errors import UserError


@dataclass(frozen=True)
class CountingShard:
    """Writes the numbers of its samples; `trouble` happens in the shard that holds `at`."""

    split: str
    start: int
    stop: int
    trouble: str
    at: int

    def write(self, add: Add) -> Facts:
        for number in range(self.start, self.stop):
            if self.split == "train" and number == self.at:
                self.stumble()
            text = encode_text(f"{self.split} {number} " * 40)
            add(f"{self.split}-{number:03d}", {"text.txt": text, "cls": b"%d" % (number % 2)})
        return {"text": {"first": self.start}}

    def stumble(self) -> None:
        if self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "crash":
            raise ZeroDivisionError("a bug")
        if self.trouble == "source":
            raise UserError("part.bin cannot be read")
        if self.trouble == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


@dataclass(frozen=True)
class Counting:
    """A source of numbers."""

    trouble: str = ""
    at: int = -1
    calls: Path | None = None

    def job(self, split: str, start: int, stop: int) -> CountingShard:
        if self.calls is not None:
            with self.calls.open("a") as log:
                log.write(f"{split} {start} {stop}\n")
        return CountingShard(split, start, stop, self.trouble, self.at)

    def modalities(self, facts: Sequence[Facts]) -> dict[str, Modality]:
        firsts = [fact["text"]["first"] for fact in facts]
        assert firsts == [*range(0, 4 * len(firsts) - 4, 4), 0]  # in the plan's order
        return {"text": Modality(kind="text", ext="txt")}


def counting_plan(source: Counting | None = None, train: int = 20, seed: int = 0) -> BuildPlan:
    """Train in shards of four, test in one."""
    return BuildPlan(
        name="counting",
        classes=("even", "odd"),
        splits={"train": train, "test": 3},
        samples_per_shard=4,
        request={"source": "counting", "train": train, "seed": seed},
        source=source or Counting(),
    )


def contents(root: Path) -> dict[str, bytes]:
    """File -> bytes of everything under `root`."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
