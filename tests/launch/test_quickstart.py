"""The main job as a user runs it: one command, one JSON object, real files, resumable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def quickstart(out: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "outmodal", "quickstart", "--json", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_whole_flow_and_its_repetition(tmp_path: Path) -> None:
    first = quickstart(tmp_path / "out")
    accuracies = [first[name] for name in ("chance", "random", "erm", "cox")]
    assert all(isinstance(a, float) and 0 <= a <= 1 for a in accuracies)
    chance, random, erm, cox = (float(str(a)) for a in accuracies)
    assert chance == 0.1
    assert abs(random - chance) < 0.08
    assert erm > 2.5 * chance
    assert cox > erm
    assert float(str(first["reload_difference"])) <= 1e-5
    for name in ("run", "export", "features", "samples", "picture"):
        path = Path(str(first[name]))
        assert path.is_absolute()
        assert path.exists()
    assert (Path(str(first["export"])) / "README.md").is_file()
    again = quickstart(tmp_path / "out")
    assert [again[n] for n in ("random", "erm", "cox")] == accuracies[1:]
