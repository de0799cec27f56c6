"""`outmodal bench train`: it runs, its answer has all its parts, and nothing is timed here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from outmodal.errors import UserError
from outmodal.launch.bench import train as module
from outmodal.launch.bench.baton import Loop, run_in_turns
from outmodal.launch.bench.steps import steps_table
from outmodal.launch.cli import main
from outmodal.launch.commands import bench
from tests.data.tiny import make_tiny

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


# --- a recipe beside a bare loop -------------------------------------------------------------

SMALL = [
    *("--recipe", "synergy-vit-b16", "--batch", "8", "--steps", "2", "--rounds", "2"),
    *("--classes", "5", "--learners.0.size", "micro", "--learners.0.patch", "8"),
    *("--learners.0.input.size", "16", "16", "--engine.precision", "fp32"),
]


def test_a_recipe_is_measured_beside_a_bare_loop_and_on_shards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_tiny(tmp_path / "data", 64, 2, ("image",), test=8)
    more = ["--data", str(data.root), "--data.eval_split", "test", "--data.streams", "2"]
    assert main(["bench", "train", *SMALL, *more, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(answer["runs"]) == {"bare", "plain", "recipe"}
    assert all(rate > 0 for run in answer["runs"].values() for rate in run.values())
    assert -1 < answer["overhead"] < 100
    assert -1 < answer["synergy_overhead"] < 100
    assert answer["mfu"] is None
    assert answer["shards"]["images_per_s"] > 0
    assert answer["environment"]["torch"] == torch.__version__
    assert answer["settings"]["batch"] == 8
    text = steps_table(answer)
    for words in ("overhead over the bare loop", "synergy over plain", "of the synthetic rate"):
        assert words in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optim.lr", "1"], "--optim.lr is a key of a recipe"),
        (["--recipe", "synergy-vit-b16", "--what", "scaling"], "leave one of them out"),
        (["--recipe", "synergy-vit"], "did you mean 'synergy-vit"),
        (["--recipe", "fashion-clip"], "supervised training of one learner"),
    ],
)
def test_bad_recipes_are_refused(options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bench.run(["train", *options])


def test_turns_are_taken_and_a_failure_ends_all() -> None:
    order: list[str] = []

    def loop(name: str) -> Loop:
        def run(before_step: Callable[[], None]) -> None:
            while True:
                before_step()
                order.append(name)

        return run

    spent = run_in_turns({n: loop(n) for n in "ab"}, 2, 3, torch.device("cpu"))
    assert "".join(order) == "aabb" * 3
    assert {name: len(turns) for name, turns in spent.items()} == {"a": 3, "b": 3}

    def broken(before_step: Callable[[], None]) -> None:
        before_step()
        raise UserError("it broke")

    with pytest.raises(UserError, match="it broke"):
        run_in_turns({"a": loop("a"), "b": broken}, 2, 3, torch.device("cpu"))
