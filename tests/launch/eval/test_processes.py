"""`outmodal eval --nproc`: what is started, and averaged weights where a run keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from outmodal.launch import local
from outmodal.launch.cli import main
from outmodal.launch.config import load_config
from outmodal.launch.running import open_run, run_plan
from outmodal.train.evaluation import evaluate_run
from outmodal.train.run import restore_method, train
from tests.launch.eval.conftest import Place
from tests.launch.report.runs import HEAD, METHODS


def test_processes_are_started_with_the_same_words(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(place.erm), "--json"]) == 0
    answer = capfd.readouterr().out
    asked: list[tuple[list[str], int]] = []

    def run_local(argv: Sequence[str], count: int) -> tuple[int, str]:
        asked.append((list(argv), count))
        return 0, answer

    monkeypatch.setattr(local, "run_local", run_local)
    assert main(["eval", str(place.erm), "--nproc", "2"]) == 0
    assert asked == [(["eval", str(place.erm), "--nproc", "2", "--json"], 2)]
    assert "mean_per_class" in capfd.readouterr().out


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_started_processes_give_the_answer_of_one(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(place.align), "--task", "retrieve", "--json"]
    assert main(words) == 0
    one = json.loads(capfd.readouterr().out)
    assert main([*words, "--nproc", "2"]) == 0
    assert json.loads(capfd.readouterr().out) == one


def test_averaged_weights_are_evaluated_where_a_run_keeps_them(
    place: Place, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "ema.yaml", tmp_path / "ema"
    recipe.write_text(HEAD.format(data=place.data) + METHODS["erm"], "utf-8")
    words = ["--out", str(out), "--engine.ema", "0.95", "--engine.epochs", "2"]
    result = train(run_plan(load_config(str(recipe), words), out))
    plan = open_run(out)[1]
    last, averaged = (
        dict(restore_method(plan, ema=ema)[0].named_parameters()) for ema in (False, True)
    )
    assert any(not last[name].equal(averaged[name]) for name in last)
    found = evaluate_run(plan).metrics
    assert {name: found[name] for name in result.metrics} == pytest.approx(result.metrics)
