"""The whole page: sections in order, one style, one script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from outmodal import __version__
from outmodal.launch.report import charts, figures, latents, summary
from outmodal.launch.report.embedding import Map
from outmodal.launch.report.evaluated import evaluated
from outmodal.launch.report.latents import Joined
from outmodal.launch.report.machine import hardware, stream
from outmodal.launch.report.markup import Markup, join, tag
from outmodal.launch.report.measure import Measured
from outmodal.launch.report.reading import RunRecord

_SCRIPTS = ("base.js", "lines.js", "map.js", "start.js")


@dataclass(frozen=True)
class Contents:
    """What a page is made of.

    Attributes:
        runs: The runs, in the order in which they were named.
        measured: Run's name -> its newest checkpoint on the evaluation split.
        maps: Run's name -> map of its features.
        missing: Run's name -> why it was not measured.
        joined: Synergy runs, each with the one at alpha 0 in one map.
    """

    runs: Sequence[RunRecord]
    measured: Mapping[str, Measured] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    joined: Sequence[Joined] = ()


def render(contents: Contents) -> str:
    """The page's HTML."""
    sections = [(key, title, body) for key, title, body in _sections(contents) if body]
    shown = [
        tag(
            "section",
            tag("h2", title, id=f"{key}-title"),
            body,
            id=key,
            aria_labelledby=f"{key}-title",
        )
        for key, title, body in sections
    ]
    title = "outmodal report: " + ", ".join(run.name for run in contents.runs)
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    links = [tag("a", name, href=f"#{key}") for key, name, _ in sections]
    page = [
        tag("a", "Skip to the report", href="#report", class_="skip"),
        tag(
            "header",
            tag("h1", title),
            tag("button", "Theme: system", type="button", id="theme", class_="tool", hidden=True),
            tag("nav", *links, aria_label="Sections"),
        ),
        tag("noscript", tag("p", "Curves and maps need scripts; tables do not.", class_="note")),
        tag("main", *shown, id="report", tabindex=-1),
        tag("footer", tag("p", f"Made by outmodal {__version__}.")),
        Markup(f"<script>{script}</script>"),
    ]
    html = tag("html", _head(title, script), tag("body", *page), lang="en")
    return f"<!doctype html>\n{html}\n"


def _head(title: str, script: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Markup(f"<style>{_asset('page.css')}</style>"),
    )


def _sections(contents: Contents) -> list[tuple[str, str, Markup]]:
    runs, measured = contents.runs, contents.measured
    return [
        ("summary", "Summary", join([summary.unfinished(runs), summary.overview(runs)])),
        ("differences", "Configuration", _configuration(runs)),
        ("results", "Results", _results(contents)),
        ("evaluations", "Evaluations", evaluated(runs)),
        ("curves", "Curves", figures.charts([*charts.training(runs), *charts.evaluation(runs)])),
        ("confusion", "Confusion", _confusion(measured)),
        ("map", "Embedding map", _maps(contents)),
        ("latents", "Latents", _latents(contents)),
        ("gap", "Modality gap", _gaps(runs, measured)),
        ("agreement", "Agreement and disagreement", figures.charts(charts.agreement(runs))),
        ("refreshes", "Between epochs", figures.charts(charts.refreshes(runs))),
        ("stream", "Data stream", stream(runs)),
        ("hardware", "Hardware", hardware(runs)),
    ]


def _configuration(runs: Sequence[RunRecord]) -> Markup:
    return join([summary.config_difference(runs), summary.whole_configs(runs)])


def _results(contents: Contents) -> Markup:
    note = figures.method_note(contents.measured, contents.missing)
    return join([figures.results(contents.runs, contents.measured), note])


def _confusion(measured: Mapping[str, Measured]) -> Markup:
    parts: list[Markup] = []
    for run, found in measured.items():
        if found.confusion is not None:
            folded = tag("details", tag("summary", f"Classes of {run}"), figures.per_class(found))
            parts += [figures.confusion(found, run), folded]
    return join(parts)


def _maps(contents: Contents) -> Markup:
    drawn = [
        figures.embedding(found, contents.measured[run], run)
        for run, found in contents.maps.items()
    ]
    return tag("div", *drawn, class_="figures") if drawn else join([])


def _latents(contents: Contents) -> Markup:
    drawn = [figures.embedding(j.laid_out, j.measured, j.name) for j in contents.joined]
    maps = tag("div", *drawn, class_="figures") if drawn else join([])
    return join([figures.charts(latents.curves(contents.runs)), maps])


def _gaps(runs: Sequence[RunRecord], measured: Mapping[str, Measured]) -> Markup:
    tables = [figures.gap_table(found, run) for run, found in measured.items()]
    return join([figures.charts(charts.discrepancy(runs)), *tables])


def _asset(name: str) -> str:
    return (resources.files("outmodal.launch.report") / "assets" / name).read_text("utf-8")
