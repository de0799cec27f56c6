"""Tiny runs, and exports of one of them, that the tests of this room evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from outmodal.launch.cli import main
from tests.launch.report.runs import trained


@dataclass(frozen=True)
class Place:
    """Folders of runs on one data set, and of exports of the aligned one's encoders."""

    data: Path
    erm: Path
    align: Path
    exports: dict[str, Path]
    classifier: Path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("evaluated")
    runs = trained(root, ["erm", "align"])
    exports = {m: root / f"export-{m}" for m in ("force", "pose")}
    for modality, folder in exports.items():
        words = ["export", str(runs["align"]), "--to", str(folder), "--modality", modality]
        assert main(words) == 0
    assert main(["export", str(runs["erm"]), "--to", str(root / "classifier")]) == 0
    return Place(root / "data", runs["erm"], runs["align"], exports, root / "classifier")
