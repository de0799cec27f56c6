"""The tutorial's blocks run as they stand, in their order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.launch.cli import main

TUTORIAL = Path(__file__).parent.parent.parent / "docs" / "tutorial.md"
MOST_LINES = 30
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[str, str, str]]:
    """(language, file name, text) of every block."""
    return BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))


def test_it_takes_thirty_lines_of_python() -> None:
    code = "".join(text for language, _, text in blocks() if language == "python")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 110


def test_every_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for language, file, text in blocks():
        if language == "yaml":
            Path(file).write_text(text, encoding="utf-8")
        elif language == "sh":
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
        else:
            assert language == "python"
            exec(compile(text, str(TUTORIAL), "exec"), scope)
    assert scope["vectors"].shape == (31, 16)
    np.testing.assert_allclose(np.linalg.norm(scope["vectors"], axis=1), 1.0, atol=1e-5)
    assert scope["correct"] > 0.8  # 1/3 by chance
    nearest = set(np.argsort(-scope["similar"])[:5] % 3)
    assert nearest == {0}
    assert (tmp_path / "touch-encoder" / "model.onnx").is_file()
    assert "new grips recognised" in capsys.readouterr().out
