"""Figures and tables of the page: the page's script draws what lies in them as JSON."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from outmodal.launch.report.charts import Chart
from outmodal.launch.report.embedding import Map
from outmodal.launch.report.markup import Markup, data, join, scroller, table, tag
from outmodal.launch.report.measure import Measured
from outmodal.launch.report.reading import RunRecord
from outmodal.train.intervals import LEVEL, Score

MOST_CLASSES = 40
"""Classes of a whole confusion matrix; of more, those with the most mistakes are shown."""

_MIXED_UP = 15  # pairs of classes that are listed


def figure(kind: str, key: str, title: str, note: str, content: Mapping[str, Any]) -> Markup:
    """A figure with its heading, its note and its data; the script fills it."""
    name = f"{kind}-{zlib.crc32(key.encode()):08x}"  # a run's name may hold anything
    head = tag("h3", title, id=f"{name}-title")
    caption = tag("figcaption", head, tag("p", note))
    return tag(
        "figure", caption, data(content), id=name, data_kind=kind, aria_labelledby=f"{name}-title"
    )


def charts(found: Iterable[Chart]) -> Markup:
    """Line charts, two beside each other where there is room."""
    drawn = [figure("lines", c.key, c.title, c.note, c.json()) for c in found]
    return tag("div", *drawn, class_="figures") if drawn else join([])


def results(runs: Sequence[RunRecord], measured: Mapping[str, Measured]) -> Markup:
    """Every metric of the last evaluation, a column a run, with intervals where samples were at
    hand."""
    found = {run.name: _scores(run, measured.get(run.name)) for run in runs}
    names = sorted({name for scores in found.values() for name in scores})
    if not names:
        return tag("p", "There is no evaluation yet.")
    rows = [[name, *[_cell(found[run.name].get(name)) for run in runs]] for name in names]
    return table(
        "Evaluation split", ["Metric", *[run.name for run in runs]], rows, class_="numbers"
    )


def per_class(measured: Measured) -> Markup:
    """Accuracy of each class."""
    rows = [[s.name, _cell(s), str(s.count)] for s in measured.per_class]
    return table("Accuracy of each class", ["Class", "Accuracy", "Samples"], rows, class_="numbers")


def confusion(measured: Measured, run: str) -> Markup:
    """The confusion matrix as a table whose cells are shaded, and the classes most mixed up."""
    assert measured.confusion is not None
    counts = measured.confusion
    mistakes = counts.sum(axis=1) - counts.diagonal() + counts.sum(axis=0) - counts.diagonal()
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])
    names = [measured.classes[c] for c in shown]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        tag(
            "tr",
            tag("th", measured.classes[c], scope="row"),
            *[_shaded(int(counts[c, p]), float(share[c, p])) for p in shown],
        )
        for c in shown
    ]
    left_out = len(counts) - len(shown)
    caption = f"Confusion of {run}: rows are true classes, columns what the classifier said"
    caption += f"; {left_out} classes with fewer mistakes are left out" if left_out else ""
    head = tag("tr", tag("td"), *[tag("th", tag("span", n), scope="col") for n in names])
    inner = tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *rows),
        class_="confusion",
    )
    return join([scroller(inner, caption), _mixed_up(measured)])


def _mixed_up(measured: Measured) -> Markup:
    assert measured.confusion is not None
    counts = measured.confusion.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_MIXED_UP]
    pairs = [divmod(int(i), counts.shape[1]) for i in order]
    rows = [
        [measured.classes[t], measured.classes[p], str(counts[t, p])]
        for t, p in pairs
        if counts[t, p]
    ]
    inner = table("Most frequent mistakes", ["True class", "Taken for", "Samples"], rows)
    return tag("details", tag("summary", "Most frequent mistakes"), inner)


def embedding(found: Map, measured: Measured, run: str) -> Markup:
    """The map of a run's features."""
    points = [
        [round(float(x), 4), round(float(y), 4), int(m), int(c), int(s)]
        for (x, y), m, c, s in zip(found.xy, found.modality, found.label, found.sample, strict=True)
    ]
    content = {
        "title": f"Embedding map of {run}",
        "modalities": list(found.modalities),
        "classes": list(measured.classes),
        "points": points,
    }
    note = (
        f"t-SNE of {len(points)} unit vectors of split '{measured.split}' "
        f"({', '.join(found.modalities)}). Near points are near in the full space; distances "
        "between far groups, their sizes and the axes mean nothing."
    )
    if len(found.modalities) > 1:
        note += " The gap between modalities is in the table below, from the full space."
    return figure("map", run, f"Embedding map of {run}", note, content)


def gap_table(measured: Measured, run: str) -> Markup:
    """Distances between modalities, of the newest checkpoint."""
    rows = [[f"{g.first} – {g.second}", f"{g.distance:.4f}", f"{g.mmd:.4f}"] for g in measured.gaps]
    caption = f"{run}, {measured.checkpoint}, split '{measured.split}'"
    head = ["Modalities", "Gap (distance of the unit vectors' means)", "MMD"]
    return table(caption, head, rows, class_="numbers") if rows else join([])


def method_note(measured: Mapping[str, Measured], missing: Mapping[str, str]) -> Markup:
    """How the numbers were got, and why some are missing."""
    level = f"{LEVEL:.0%}"
    lines = [
        f"Brackets hold {level} intervals by the percentile bootstrap over samples (for retrieval, "
        "over queries with the gallery kept). They tell what other samples would change, not what "
        "another seed would. Numbers without brackets are those of the run's last evaluation."
    ]
    for run, m in measured.items():
        part = "all" if m.samples == m.of else f"{m.samples} (a seeded draw)"
        lines.append(f"{run}: {m.checkpoint} on {part} of {m.of} samples of split '{m.split}'.")
    lines += [f"{run}: no intervals, as {why}" for run, why in missing.items()]
    return join(tag("p", line, class_="hint") for line in lines)


def _scores(run: RunRecord, measured: Measured | None) -> dict[str, Score]:
    logged = {n: Score(n, v) for n, v in run.last("eval").items() if v is not None}
    return logged | {s.name: s for s in (measured.scores if measured else ())}


def _cell(score: Score | None) -> str:
    if score is None:
        return "–"
    if score.low is None or score.high is None:
        return f"{score.value:.4f}"
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]"


def _shaded(count: int, share: float) -> Markup:
    style = f"--share:{share:.3f}" if count else None
    dark = "strong" if share > 0.5 else ""
    return tag("td", str(count), style=style, class_=dark)
