"""`outmodal bench train`: it runs, its answer has all its parts, and nothing is timed here."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from outmodal.errors import UserError
from outmodal.launch.bench import step_shards, steps
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


Measured = Callable[..., dict[str, Any]]
"""Options -> the answer on random inputs and on a tiny data set of pictures."""


@pytest.fixture
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests goes on and gives its memory back; see test_allocator."""
    monkeypatch.setattr(steps, "keep_memory", lambda: True)


@pytest.fixture
def measured(own_memory: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Measured:
    """Runs the command."""
    data = make_tiny(tmp_path / "data", 64, 2, ("image",), test=8)
    real = ["--data", str(data.root), "--data.eval_split", "test", "--data.streams", "2"]

    def run(*options: str) -> dict[str, Any]:
        assert main(["bench", "train", *SMALL, *real, *options, "--json"]) == 0
        answer: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
        return answer

    return run


def test_a_recipe_is_measured_beside_a_bare_loop_and_on_shards(measured: Measured) -> None:
    answer = measured()
    loops = {"bare", "again", "plain", "recipe"}
    for found in (answer, answer["shards"]):
        assert set(found["runs"]) == loops
        assert all(rate > 0 for run in found["runs"].values() for rate in run.values())
        for name in ("overhead", "synergy_overhead", "control"):
            assert -1 < found[name] < 100
            assert found["intervals"][name] is None  # of two rounds
    assert answer["mfu"] is None
    runs = answer["shards"]["runs"]["recipe"], answer["runs"]["recipe"]
    assert answer["shards"]["of_synthetic"] == runs[0]["images_per_s"] / runs[1]["images_per_s"]
    assert answer["shards"]["peer"]["over_peer"] > 0
    assert answer["environment"]["torch"] == torch.__version__
    assert answer["settings"]["batch"] == 8
    text = steps_table(answer)
    for words in ("overhead over the bare loop", "synergy over plain", "of the synthetic rate"):
        assert words in text
    assert "recipe over the peer" in text


def test_engines_go_through_epochs_of_their_own_and_intervals_come_with_rounds(
    measured: Measured,
) -> None:
    answer = measured("--rounds", "7", "--engine.eval_every", "1")  # 16 steps, 8 an epoch
    for found in (answer, answer["shards"]):
        for name in ("overhead", "synergy_overhead", "control"):
            low, high = found["intervals"][name]
            assert low <= found[name] <= high
    assert "peer" in steps_table(answer)


def test_what_ends_the_peer_does_not_cost_the_figures(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no space left in /dev/shm")

    monkeypatch.setattr(step_shards, "Peer", broken)
    found = measured()["shards"]
    assert found["runs"]["recipe"]["images_per_s"] > 0
    assert found["peer"] is None
    assert found["no_peer"] == "it ended with RuntimeError: no space left in /dev/shm"


def test_plain_training_and_pictures_that_the_peer_does_not_read(measured: Measured) -> None:
    answer = measured(
        *("--method.alpha", "0", "--method.latent_map", "side"),
        *("--learners.0.input.size", "16", "8"),
    )
    for found in (answer, answer["shards"]):
        assert set(found["runs"]) == {"bare", "again", "recipe"}
        assert found["synergy_overhead"] is None
    assert answer["shards"]["peer"] is None
    assert "no peer" in steps_table(answer)


@pytest.mark.usefixtures("own_memory")
def test_a_data_set_that_does_not_fit_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_synthetic", lambda *args: pytest.fail("measured"))
    data = make_tiny(tmp_path / "data", 64, 2, ("image",), test=8)
    for options, words in (
        ([str(data.root)], "no split 'val'"),
        ([str(tmp_path / "dat")], "dat"),
        ([str(data.root), "--data.eval_split", "test", "--batch", "128"], "128"),
    ):
        with pytest.raises(UserError, match=words):
            bench.run(["train", *SMALL, "--data", *options])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optim.lr", "1"], "--optim.lr is a key of a recipe"),
        (["--recipe", "synergy-vit-b16", "--what", "scaling"], "leave one of them out"),
        (["--recipe", "synergy-vit"], "did you mean 'synergy-vit"),
        (["--recipe", "fashion-clip"], "supervised training of one learner"),
        (["--recipe", "moco"], "method 'moco' is of another kind"),
        (["--recipe", "fashion-mnist-synergy-vit-level3"], "reads features of 'text'"),
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

    spent = run_in_turns({n: loop(n) for n in "ab"}, 2, 11, torch.device("cpu"))
    rounds = ["".join(order)[i : i + 4] for i in range(0, len(order), 4)]
    assert len(rounds) == 12  # one more, to warm up
    assert set(rounds) == {"aabb", "bbaa"}
    assert {name: len(turns) for name, turns in spent.items()} == {"a": 11, "b": 11}

    def broken(before_step: Callable[[], None]) -> None:
        before_step()
        raise UserError("it broke")

    with pytest.raises(UserError, match="it broke"):
        run_in_turns({"a": loop("a"), "b": broken}, 2, 3, torch.device("cpu"))

    def short(before_step: Callable[[], None]) -> None:
        before_step()

    with pytest.raises(RuntimeError, match="loop 'b' has come to an end"):
        run_in_turns({"a": loop("a"), "b": short}, 2, 3, torch.device("cpu"))


def test_an_interrupt_ends_all_loops() -> None:
    ended: list[str] = []

    def loop(name: str) -> Loop:
        def run(before_step: Callable[[], None]) -> None:
            try:
                for step in itertools.count():
                    before_step()
                    if name == "b" and step == 3:
                        # arrives in this thread: nothing wakes the one that has to notice it
                        signal.raise_signal(signal.SIGINT)
            finally:
                ended.append(name)

        return run

    # a shell that starts the tests in the background has them ignore interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_turns({n: loop(n) for n in "ab"}, 2, 10**9, torch.device("cpu"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(ended) == ["a", "b"]
