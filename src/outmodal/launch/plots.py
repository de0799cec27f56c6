"""One picture of several runs: accuracy over training, and where each ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = ("#888888", "#d98c00", "#0072b2", "#009e73", "#cc79a7")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def curve(run: Path, name: str, split: str = "eval") -> tuple[list[int], list[float]]:
    """Steps and values of one metric on one split."""
    lines = [m for m in read_metrics(run) if m["split"] == split and name in m["values"]]
    return [m["step"] for m in lines], [m["values"][name] for m in lines]


def draw_runs(runs: Mapping[str, Path], out: Path, metric: str = "top1") -> Path:
    """Draw the metric of every run over its steps beside its last value, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), width_ratios=(2, 1))
    for (name, run), colour in zip(runs.items(), COLOURS, strict=False):
        steps, values = curve(run, metric)
        left.plot(steps, values, marker="o", markersize=3, color=colour, label=name)
        bar = right.bar(name, values[-1], color=colour)
        right.bar_label(bar, fmt="%.3f", fontsize=8)
    left.set_xlabel("step")
    left.set_ylabel(f"test {metric} accuracy")
    left.set_ylim(0, 1)
    left.legend(frameon=False)
    right.set_ylim(0, 1)
    right.set_title("at the end", fontsize=9)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return out
