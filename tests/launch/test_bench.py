"""`outmodal bench perceptors`: it runs, its answer has all its parts, and nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from outmodal.errors import UserError
from outmodal.launch.bench.cached import compare_epochs
from outmodal.launch.bench.perceptors import measure, table
from outmodal.launch.bench.timing import in_turns, ratio
from outmodal.launch.bench.towers import TOWERS, make_pair
from outmodal.launch.cli import main
from outmodal.launch.commands import bench

CPU = torch.device("cpu")
TINY = ["perceptors", "--size", "tiny", "--batch", "2", "--repeats", "1", "--rounds", "1"]


@pytest.fixture(autouse=True)
def keep_threads() -> object:
    """The command sets the number of threads; give the tests theirs back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_answer_has_all_its_parts(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--samples", "4", "--compile", "False", "--threads", "1", "--json"]
    assert main(["bench", *TINY, *options]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert set(answer) == {"machine", "settings", "compile", "towers", "cached_epoch"}
    assert set(answer["machine"]) == {"device", "threads", "torch", "transformers"}
    assert answer["settings"] == {"size": "tiny", "precision": "fp32", "batch": 2, "repeats": 1}
    assert answer["compile"] == "switched off"
    assert [tower["name"] for tower in answer["towers"]] == list(TOWERS)
    for tower in answer["towers"]:
        assert set(tower["per_second"]) == {"outmodal_eager", "stock_eager"}
        assert set(tower["ratio"]) == {"eager"}
        assert tower["difference"] < 1e-5
    epoch = answer["cached_epoch"]
    assert (epoch["samples"], epoch["batch"]) == (4, 2)
    assert epoch["live_loss"] == pytest.approx(epoch["cached_loss"], abs=1e-5)
    assert min(epoch["live"], epoch["cached"], epoch["encode_once"], epoch["speedup"]) > 0
    text = table(answer)
    assert "imagebind/vision" in text
    assert "not compiled: switched off" in text


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outmodal.models.perceptors.compiler.shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    outcome = bench.run([*TINY, "--tower", "imagebind/audio", "--samples", "0"])
    assert "no C++ compiler" in str(outcome.data["compile"])
    assert "not compiled: no C++ compiler" in outcome.text
    assert outcome.data["cached_epoch"] is None


def test_compiled_towers_are_timed_beside_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call: wrapped.append(call) or call)
    pair = make_pair("languagebind/text", "tiny", torch.float32, CPU)
    result = measure(pair, 2, 1, True, CPU)
    assert wrapped == [pair.ours, pair.theirs]
    assert set(result["ratio"]) == {"eager", "compiled"}


@pytest.mark.parametrize("name", TOWERS)
def test_both_towers_compute_the_same_on_the_same_tensors(name: str) -> None:
    pair = make_pair(name, "tiny", torch.float32, CPU)
    x = pair.inputs(3)
    with torch.no_grad():
        torch.testing.assert_close(pair.ours(x), pair.theirs(x), atol=1e-5, rtol=0)
        assert not torch.allclose(pair.ours(x)[0], pair.ours(x)[1])


def test_alternatives_take_turns() -> None:
    order: list[str] = []
    seconds = in_turns({n: lambda n=n: order.append(n) for n in "ab"}, 2, CPU)
    assert order == list("abab")
    assert [len(rounds) for rounds in seconds.values()] == [2, 2]
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["perceptrons"], "did you mean 'perceptors'"),
        ([*TINY, "--tower", "imagebind/visoin"], "did you mean 'imagebind/vision'"),
        ([*TINY, "--samples", "3"], "multiple of --batch"),
        (["perceptors", "--repeats", "0"], "--repeats must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.run(options)


def test_more_samples_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most"):
        compare_epochs(tmp_path, "tiny", 10**6, 10, 1, CPU, torch.float32)
