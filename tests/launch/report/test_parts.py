"""Markup, intervals, charts, differences of configurations, maps: each by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from outmodal.data.batch import StreamSpec
from outmodal.errors import UserError
from outmodal.launch.report import charts, measure
from outmodal.launch.report.embedding import embedding_map
from outmodal.launch.report.markup import Markup, data, tag
from outmodal.launch.report.measure import Measured, gaps
from outmodal.launch.report.reading import read_runs
from outmodal.launch.report.summary import changes
from outmodal.train.intervals import score
from tests.launch.report.runs import boarded, by_hand, line


@given(st.text())
def test_no_text_becomes_an_element(text: str) -> None:
    made = tag("p", text, title=text)
    assert made.startswith("<p title=")
    assert made.count("<") == 2
    assert "<" not in data({text: [text]})[len('<script type="application/json">') : -9]
    assert json.loads(data([text])[len('<script type="application/json">') : -9]) == [text]


def test_markup_is_left_alone_and_attributes_can_be_left_out() -> None:
    assert tag("b", Markup("<i>x</i>"), hidden=True, id=None, tabindex=0, class_="") == (
        '<b hidden tabindex="0"><i>x</i></b>'
    )


def test_an_interval_of_hits_is_the_binomial_one() -> None:
    found = score("top1", [1] * 70 + [0] * 30, draws=20_000)
    assert found is not None
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.7) / 100
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(low, abs=0.011)
    assert found.high == pytest.approx(high, abs=0.011)


def test_an_interval_of_numbers_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=60)
    found = score("map", values, draws=8000)
    peer = stats.bootstrap((values,), np.mean, n_resamples=8000, method="percentile", rng=1)
    assert found is not None
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.05)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.05)
    assert score("map", values) == score("map", values)
    assert score("nothing", []) is None


def test_a_thinned_curve_keeps_its_ends_and_peaks() -> None:
    points: list[tuple[float, float | None]] = [(i, float(np.sin(i))) for i in range(20_000)]
    points[7777] = (7777, 50.0)
    kept = charts.thinned(points, 800)
    assert len(kept) <= 802
    assert {(0, 0.0), (7777, 50.0), points[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert charts.thinned(points[:10], 800) == points[:10]
    assert all(v is None for _, v in charts.thinned([(i, None) for i in range(999)], 10))


def test_curves_go_to_their_charts(tmp_path: Path) -> None:
    text = line(0, "epoch", **{"mmd/a": 0.5, "agreement_rate": 0.2, "anchor_purity": 0.1})
    text += line(1, "diagnostics", **{"mmd/a-b": 0.5, "judge_accuracy/a": 0.25})
    text += line(1, "train", **{"loss": 1.0, "loss/x": 0.5, "lr": 0.1})
    text += line(
        1, "eval", **{"top1": 0.2, "top5": 0.4, "a_to_b/r1_class": 0.1, "agreement_rate": 1}
    )
    runs = read_runs([by_hand(tmp_path / "a", text), by_hand(tmp_path / "b", text)])
    assert [c.title for c in charts.training(runs)] == [
        "Training loss",
        "Terms of the loss",
        "Learning rate",
    ]
    assert [(c.title, c.percent) for c in charts.evaluation(runs)] == [
        ("R1 class", True),
        ("Top-k accuracy", True),
    ]
    assert [s.name for s in charts.evaluation(runs)[1].series] == [
        "a: top1",
        "a: top5",
        "b: top1",
        "b: top5",
    ]
    assert [c.title for c in charts.discrepancy(runs)] == [
        "MMD over training (evaluation split)",
        "Accuracy of the known modalities' heads over training (evaluation split)",
        "MMD over training (training split)",
    ]
    assert [c.percent for c in charts.discrepancy(runs)] == [False, True, False]
    assert [c.key for c in charts.agreement(runs)] == ["agreement-eval", "agreement-epoch"]
    assert [c.key for c in charts.refreshes(runs)] == ["epoch-shares"]
    boarded(tmp_path / "a", "speed/steps_per_s", [2.0])
    (run,) = read_runs([tmp_path / "a"])
    (chart,) = charts.Charts([run]).board("k", "Speed", "", ["speed/steps_per_s"])
    assert chart.series[0].points == [(1, 2.0)]


def test_configurations_of_three_runs_are_compared(tmp_path: Path) -> None:
    texts = ["out: a\nm: {x: 1, y: 2}\n", "out: b\nm: {x: 1, y: 3}\n", "out: c\nm: {x: 4}\nz: 5\n"]
    runs = read_runs([by_hand(tmp_path / str(i), config=t) for i, t in enumerate(texts)])
    assert changes(runs) == {"m.x": [1, 1, 4], "m.y": [2, 3, None], "z": [None, None, 5]}


def _measured(features: dict[str, torch.Tensor], **absent: list[int]) -> Measured:
    count = len(next(iter(features.values())))
    present = {m: torch.ones(count, dtype=torch.bool) for m in features}
    for name, rows in absent.items():
        present[name][rows] = False
    label = torch.arange(count) % 2
    return Measured(
        "step-1", "test", count, count, ("x", "y"), label, features=features, present=present
    )


def test_a_map_repeats_and_keeps_neighbours() -> None:
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(40) % 2
    centre = torch.eye(8)[label * 3] * 9
    features = {m: centre + torch.randn(40, 8, generator=draw) for m in ("a", "b")}
    measured = _measured(features, b=[0, 1, 2])
    found, again = embedding_map(measured), embedding_map(measured)
    assert found is not None
    assert again is not None
    assert len(found.xy) == 77
    assert np.array_equal(found.xy, again.xy)
    assert np.abs(found.xy).max() == pytest.approx(1)
    gap = np.linalg.norm(found.xy[:, None] - found.xy[None], axis=-1)
    np.fill_diagonal(gap, np.inf)
    assert (found.label[gap.argmin(axis=1)] == found.label).mean() > 0.95
    assert not set(found.sample[found.modality == 1]) & {0, 1, 2}


def test_no_map_of_few_points_or_of_two_spaces() -> None:
    assert embedding_map(_measured({"a": torch.randn(4, 3)})) is None
    assert embedding_map(_measured({"a": torch.randn(9, 3), "b": torch.randn(9, 4)})) is None
    assert embedding_map(_measured({"a": torch.full((9, 3), torch.nan)})) is None


def test_the_gap_is_the_distance_of_means() -> None:
    a, b = torch.tensor([[2.0, 0.0]] * 4), torch.tensor([[0.0, 5.0]] * 4)
    everyone = torch.ones(4, dtype=torch.bool)
    (gap,) = gaps({"a": a, "b": b}, {"a": everyone, "b": everyone})
    assert (gap.first, gap.second) == ("a", "b")
    assert gap.distance == pytest.approx(2**0.5)
    assert gaps({"a": a, "b": b}, {"a": everyone, "b": ~everyone}) == []


class _Answers:
    """Passes of a method that knows some names."""

    def __init__(self, known: dict[str, dict[str, torch.Tensor]]) -> None:
        self._known = known

    def infer(self, what: str, spec: StreamSpec) -> dict[str, torch.Tensor]:
        if what not in self._known:
            raise ValueError(what)
        return self._known[what]

    def weights(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {}


def test_methods_that_the_page_does_not_know_are_measured_as_far_as_they_answer() -> None:
    there = torch.ones(4, dtype=torch.bool)
    label = torch.tensor([0, 1, 1, -1])
    frame = Measured("step-1", "test", 4, 4, ("x", "y"), label)
    method: Any = SimpleNamespace(context=SimpleNamespace(learners={"a": None}, batch=4))
    logits = torch.eye(2)[torch.tensor([0, 1, 0, 0])]
    known = {
        "embedding:a": {"embedding": torch.eye(4), "present": there},
        "logits": {"logits": logits, "present": there},
    }
    found = measure._other(frame, method, _Answers(known), None)
    values = [(s.name, s.value, s.count) for s in found.scores]
    assert values == [("top1", pytest.approx(2 / 3), 3), ("top5", 1.0, 3)]
    assert found.features["a"].shape == (4, 4)
    with pytest.raises(UserError, match="neither logits nor embeddings"):
        measure._other(frame, method, _Answers({}), None)
