"""The progress line: steps, time left, time waiting for data."""

from __future__ import annotations

import pytest

from outmodal.train import progress as progress_module
from outmodal.train.progress import Progress

Err = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def lines_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_EVERY", 0.0)


def test_a_line_says_how_much_of_the_time_data_were_waited_for(capsys: Err) -> None:
    with Progress(4) as shown:
        shown.advance("epoch 1/1 train", {"loss": 0.5}, lambda: 37.4)
        shown.advance("epoch 1/1 train", {})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("epoch 1/1 train: step 1/4, about 0:")
    assert first.endswith("left loss=0.5 data 37%")
    assert "data" not in second


def test_it_asks_only_where_a_line_is_due(capsys: Err, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_EVERY", 1e9)
    asked: list[int] = []

    def waiting() -> float:
        asked.append(1)
        return 0.0

    with Progress(4) as shown:
        shown.advance("train", {}, waiting)
    assert not asked
    assert capsys.readouterr().err == ""


def test_other_processes_are_silent(capsys: Err) -> None:
    with Progress(4, shown=False) as shown:
        shown.advance("train", {"loss": 1.0}, lambda: 1.0)
    assert capsys.readouterr().err == ""
