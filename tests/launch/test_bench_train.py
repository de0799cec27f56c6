"""`outmodal bench train`: it runs, its answer has all its parts, and nothing is timed here."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from outmodal.errors import UserError
from outmodal.launch.bench import train as module
from outmodal.launch.cli import main
from outmodal.launch.commands import bench

TINY = ["--width", "8", "--checkpoint_width", "8", "--batch", "16", "--steps", "8"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """Runs happen in this process, as one rank; what was asked for is kept."""
    asked: list[tuple[list[str], int]] = []

    def here(argv: Sequence[str], count: int) -> tuple[int, str]:
        asked.append((list(argv), count))
        strategy = ["--engine.strategy", "single"]
        return main([*(a for a in argv if a != "--json"), *strategy]), ""

    monkeypatch.setattr(module, "run_local", here)
    return asked


@pytest.mark.long
def test_the_answer_has_all_its_parts(
    started: list[tuple[list[str], int]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "train", *TINY, "--checkpoints", "2", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(answer) == {"machine", "settings", "checkpoints", "scaling"}
    found = answer["checkpoints"]
    for name in ("synchronous", "background"):
        assert found[name]["checkpoints"] == 2
        assert min(found[name][k] for k in ("MiB", "stall_s", "snapshot_s", "write_s")) > 0
    assert found["synchronous"]["stall_s"] >= found["synchronous"]["write_s"]
    assert found["stall_ratio"] > 0
    rows = answer["scaling"]
    assert [row["processes"] for row in rows] == [1, 2, 2, 2, 2, 2]
    assert [row["batch"] for row in rows] == [16, 16, 32, 32, 32, 32]
    assert [row["over_first_strategy"] is None for row in rows] == [True, True, *[False] * 4]
    assert rows[0]["speedup"] == 1
    assert [count for _, count in started] == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    text = module.table(answer)
    for words in ("synchronous", "background", "zero3, 2 processes", "ddp, batch shared"):
        assert words in text


def test_a_run_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_local", lambda argv, count: (1, ""))
    with pytest.raises(UserError, match=r"'none' ended with 1"):
        bench.run(["train", *TINY])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--what", "scalling"], "scaling"),
        (["--strategies", "zero9"], "zero"),
        (["--batch", "24"], "multiple of 16"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--processes", "1"], "--processes must be at least 2"),
    ],
)
def test_bad_numbers_are_refused(options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bench.run(["train", *options])
