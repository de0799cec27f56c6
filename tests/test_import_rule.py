"""data <- models <- train <- launch: nothing imports to its right."""

from __future__ import annotations

import ast
from pathlib import Path

import outmodal

ROOMS = ["data", "models", "train", "launch"]
PACKAGE = Path(outmodal.__file__).parent


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports from, at the top or inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: imports are absolute"
            names.append(f"{node.module}")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [n.split(".") for n in names]
    return {p[1] for p in parts if p[0] == "outmodal" and len(p) > 1 and p[1] in ROOMS}


def test_rooms_import_only_to_their_left() -> None:
    for order, room in enumerate(ROOMS):
        files = list((PACKAGE / room).rglob("*.py"))
        assert files, f"no files in {room}"
        for path in files:
            right = imported_rooms(path) & set(ROOMS[order + 1 :])
            assert not right, f"{path} in {room} imports from {right}"


def test_shared_modules_import_no_room() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.name != "__main__.py":
            assert not imported_rooms(path), path


def test_slurm_holds_no_code() -> None:
    assert [p.name for p in (PACKAGE / "slurm").rglob("*.py") if p.name != "__init__.py"] == []
