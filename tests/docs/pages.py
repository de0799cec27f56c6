"""The documentation's files, their fenced blocks, and the shell commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(r"^```([\w-]*) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELLS = ("sh", "bash", "shell", "console")
PROGRAMS = {
    *("outmodal", "make", "curl", "hf", "torchrun", "srun", "sbatch", "deepspeed", "accelerate"),
    *("pip", "python", "tensorboard", "apt-get", "sudo", "git", "for", "done"),
}


def pages() -> list[Path]:
    """README.md and everything in docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Path relative to the repository.
        language, file: What stands behind the fence.
        text: Its lines.
    """

    page: str
    language: str
    file: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    name = str(page.relative_to(ROOT))
    return [Block(name, *found) for found in FENCE.findall(page.read_text("utf-8"))]


def commands(page: Path) -> list[str]:
    """The shell commands of a page in their order, each in one line, without comments: every line
    of fenced shell blocks, and of indented blocks the lines that begin with a program."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    return [command for line in _lines(text) for command in _split(line)]


def _lines(text: str) -> Iterator[str]:
    language: str | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            language = line.removeprefix("```").split(" ")[0] if language is None else None
        elif _is_command(line, language):
            yield line


def _is_command(line: str, language: str | None) -> bool:
    if language is not None:
        return language in SHELLS and bool(line.strip())
    return line.startswith("    ") and bool(PROGRAMS & set(line.split()[:1]))


def _split(line: str) -> Iterator[str]:
    for part in re.split(r"&&", re.sub(r"\s#.*", "", line)):
        yield " ".join(part.split()).removeprefix("$ ")
