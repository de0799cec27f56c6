"""What `outmodal eval` leaves in a run's folder appears on the page, and nothing else does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from outmodal.launch.cli import main
from outmodal.launch.report.build import write_report
from outmodal.launch.report.evaluations import Row, read_evaluations, series
from tests.launch.report.browser import Browser
from tests.launch.report.runs import boarded, by_hand, line

NOTHING = {
    key: None
    for key in ("modality", "combination", "class", "corruption", "severity", "rate", "low", "high")
}


def row(metric: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {"task": "t", **NOTHING, "metric": metric, "value": value, "samples": 20, **more}


def result(task: str, *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "task": task,
        "target": "runs/x",
        "checkpoint": "step-00000012",
        "data": "data",
        "split": "test",
        "samples": 20,
        "metrics": {},
        "per_class": {},
        "classes": [],
        "confusion": None,
        "rows": list(rows),
        "settings": {"probe": "linear"},
        **more,
    }


def place(run: Path, found: dict[str, Any]) -> None:
    (run / "eval").mkdir(exist_ok=True)
    name = f"{found['task']}-{found['split']}.json"
    (run / "eval" / name).write_text(json.dumps(found), "utf-8")


MISSING = [
    row("top1", value, modality=m, rate=rate, low=value - 0.1, high=value + 0.1)
    for m in ("force", "pose")
    for rate, value in ((0.0, 0.9), (0.3, 0.7), (0.9, 0.4))
]
CORRUPTED = [
    row("top1", 0.9 - severity / 10, corruption="noise", severity=severity) for severity in range(6)
]
CLASS = row("accuracy", 0.5, **{"class": "red"})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with three evaluations, and two files that are none."""
    root = by_hand(tmp_path / "run", line(1, "train", loss=1.0))
    (root / "checkpoints" / "step-00000024").mkdir(parents=True)
    classes = {"red": row("accuracy", 0.25, low=0.0, high=0.5)}
    place(root, result("classify", row("top1", 0.55, low=0.35, high=0.75), per_class=classes))
    place(root, result("missing", *MISSING, CLASS))
    place(root, result("corruptions", *CORRUPTED, row("mean", None)))
    (root / "eval" / "half.json").write_text('{"format": 1, "ta', "utf-8")
    (root / "eval" / "later.json").write_text('{"format": 99}', "utf-8")
    return root


def test_every_number_is_read_with_its_interval(run: Path) -> None:
    found, refused = read_evaluations(run / "eval")
    assert [one.task for one in found] == ["classify", "corruptions", "missing"]
    assert refused == ["half.json", "later.json"]
    assert found[0].rows == (Row({"metric": "top1"}, 0.55, 0.35, 0.75),)
    assert found[0].per_class["red"].low == 0.0
    assert len(found[2].rows) == 6  # the row of a class is not counted twice
    assert found[2].rows[1].name() == "top1, force, rate 0.3"
    assert read_evaluations(run / "nowhere") == ([], [])


def test_sweeps_become_curves(run: Path) -> None:
    classify, corruptions, missing = read_evaluations(run / "eval")[0]
    assert series(missing, "rate")["top1"]["force"] == [(0.0, 0.9), (0.3, 0.7), (0.9, 0.4)]
    curve = series(corruptions, "severity")["top1"]["noise"]
    assert [x for x, _ in curve] == [0, 1, 2, 3, 4, 5]
    assert series(classify, "rate") == {}


def test_lines_begin_at_the_inputs_as_they_are(tmp_path: Path) -> None:
    clean = row("top1", 0.9, modality="force", severity=0)
    damaged = [
        row("top1", value, modality="force", corruption="noise", severity=severity)
        for severity, value in ((1, 0.75), (5, 0.25))
    ]
    run = by_hand(tmp_path / "run")
    place(run, result("corruptions", *damaged, clean))
    (found,) = read_evaluations(run / "eval")[0]
    curves = series(found, "severity")["top1"]
    assert curves == {"force, noise": [(0.0, 0.9), (1.0, 0.75), (5.0, 0.25)]}


def test_tables_have_intervals_and_say_of_which_checkpoint(run: Path, tmp_path: Path) -> None:
    text = write_report([run], tmp_path / "r.html", 0, False).path.read_text("utf-8")
    assert "0.5500 [0.3500, 0.7500]" in text
    assert "0.2500 [0.0000, 0.5000]" in text
    assert "0.7000 [0.6000, 0.8000]" in text
    assert "step-00000012, 20 samples; probe linear." in text
    assert "run has step-00000024 by now" in text
    assert "eval/half.json is left out" in text
    assert "eval/later.json is left out" in text


def test_runs_stand_beside_each_other(run: Path, tmp_path: Path) -> None:
    other = by_hand(tmp_path / "other")
    place(other, result("classify", row("top1", 0.65), row("top5", 1.0)))
    text = write_report([run, other], tmp_path / "r.html", 0, False).path.read_text("utf-8")
    both = "<td>0.5500 [0.3500, 0.7500]</td><td>0.6500</td>"
    assert both in text
    assert "<td>–</td><td>1.0000</td>" in text
    assert text.count("classify: split") == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def _as_shown(number: Mapping[str, Any]) -> str:
    if number["value"] is None:  # the relative error of an encoder without errors
        return "–"
    return f"{number['value']:.4f} [{number['low']:.4f}, {number['high']:.4f}]"


QUICK = ("--probe.epochs", "2", "--probe.batch", "32", "--knn.k", "3", "--draws", "60")
EVALUATIONS = {
    "classify": (),
    "probe": (),
    "knn": (),
    "combinations": (),
    "retrieve": ("--pool", "5"),
    "missing": ("--rates", "0.3", "0.7"),
    "corruptions": ("--modality", "force", "--severities", "1", "5"),
}


def test_every_task_of_eval_appears_as_it_was_measured(
    browser: Browser, runs: dict[str, Path], tmp_path: Path
) -> None:
    run, out = tmp_path / "align", tmp_path / "report.html"
    shutil.copytree(runs["align"], run)
    for task, words in EVALUATIONS.items():
        assert main(["eval", str(run), "--task", task, *words, *QUICK]) == 0
    assert main(["report", str(run), "--out", str(out), "--evaluate", "False"]) == 0
    browser.load(out)
    assert browser.complaints() == []
    assert browser.requests() == [out.as_uri()]
    section = "document.querySelector('#evaluations')"
    shown = browser.value(f"[...{section}.querySelectorAll('td')].map((c) => c.textContent)")
    for task in EVALUATIONS:
        kept = json.loads((run / f"eval/{task}-test.json").read_text("utf-8"))
        assert kept["rows"]
        for number in kept["rows"]:
            assert _as_shown(number) in shown, (task, number)
    titles = browser.value(f"[...{section}.querySelectorAll('figure h3')].map((h) => h.innerText)")
    assert sorted(titles) == [
        "corruptions: accuracy over severity",
        "missing: accuracy over rate",
    ]
    hints = browser.value(f"[...{section}.querySelectorAll('.hint')].map((h) => h.innerText)")
    assert any("20 samples" in hint and "probe.epochs 2" in hint for hint in hints)
    assert browser.value("document.querySelectorAll('#evaluations .note').length") == 0


@pytest.mark.parametrize("width", [1280, 360])
def test_the_section_in_a_browser(browser: Browser, run: Path, tmp_path: Path, width: int) -> None:
    boarded(run, "data/waiting_percent", [3.0, 5.0])
    page = write_report([run], tmp_path / "r.html", 0, False).path
    browser.load(page, width=width)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    titles = browser.value(
        "[...document.querySelectorAll('#evaluations h3')].map((h) => h.innerText)"
    )
    assert "missing: top1 over rate" in titles
    assert "corruptions: top1 over severity" in titles
    figures = "[...document.querySelectorAll('#evaluations figure')]"
    assert browser.value(f"{figures}.every((f) => f.querySelector('svg[role=img] path'))")
    assert browser.value("document.documentElement.scrollWidth") <= width
    browser.value(f"{figures}.at(-1).querySelector('.plot').focus()")
    browser.press("End")
    tip = browser.value(f"{figures}.at(-1).querySelector('output').textContent")
    assert tip == "rate 0.9\nforce: 0.4\npose: 0.4"
    ticks = browser.value(
        f"[...{figures}.at(-1).querySelectorAll('text')].map((t) => t.textContent)"
    )
    assert "0.5" in ticks or "0.2" in ticks
    assert browser.value("document.querySelector('#stream').textContent.includes('Waiting')")
