"""Rules of the code base that a reader relies on."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import outmodal

PACKAGE = Path(outmodal.__file__).parent
ROOT = Path(__file__).parent.parent
LONGEST_FUNCTION = 80
LONGEST_FILE = 450


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the package."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_functions_are_short() -> None:
    for path, node in functions():
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        assert length <= LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name}: {length} lines"


def test_files_are_short() -> None:
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= LONGEST_FILE, f"{path}: {lines} lines"


def test_nothing_unpickles() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text, path
        assert "allow_pickle=True" not in text, path
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, f"{path}: {line}"


def test_root_links_show_the_rooms() -> None:
    for room in ("data", "models", "train", "launch", "slurm"):
        link = ROOT / room
        assert link.is_symlink(), room
        assert os.readlink(link) == f"src/outmodal/{room}"
