"""The page's first sections: what the runs are, and how their configurations differ."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from outmodal.launch.report.markup import Markup, join, table, tag
from outmodal.launch.report.reading import RunRecord
from outmodal.train.runfolder import differences

_WHERE = frozenset({"out"})  # keys that say where a run is, not what


def overview(runs: Sequence[RunRecord]) -> Markup:
    """State, method, data and length of each run, a column each."""
    facts = [_facts(run) for run in runs]
    rows = [[key, *[fact[key] for fact in facts]] for key in facts[0]]
    return table("What was run", ["", *[run.name for run in runs]], rows)


def unfinished(runs: Sequence[RunRecord]) -> Markup:
    """A note for each run that is not done."""
    return join(
        tag("p", _state_text(run), class_="note") for run in runs if run.state != "finished"
    )


def config_difference(runs: Sequence[RunRecord]) -> Markup:
    """Keys in which configurations differ, a column a run."""
    if len(runs) < 2:
        return tag("p", "There is one run on this page: name several to compare them.")
    rows = [[key, *map(_shown, values)] for key, values in changes(runs).items()]
    if not rows:
        return tag("p", "The configurations are equal but for the folders.")
    return table("Keys that differ", ["Key", *[run.name for run in runs]], rows)


def changes(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Dotted key -> value in each run (None where it has no such key), where any two differ."""
    found: dict[str, dict[int, Any]] = {}
    first = runs[0].config_text
    for place, run in enumerate(runs[1:], 1):
        for key, before, now in differences(first, run.config_text):
            if key not in _WHERE:
                found.setdefault(key, {0: before})[place] = now
    return {
        key: [held.get(place, held[0]) for place in range(len(runs))]
        for key, held in sorted(found.items())
    }


def whole_configs(runs: Sequence[RunRecord]) -> Markup:
    """Every run's config.yaml, folded."""
    return join(
        tag(
            "details",
            tag("summary", f"config.yaml of {run.name}"),
            tag("pre", run.config_text, tabindex=0, aria_label=f"config.yaml of {run.name}"),
        )
        for run in runs
    )


def _facts(run: RunRecord) -> dict[str, str]:
    config, newest = run.config, run.lines[-1] if run.lines else None
    data, engine = _section(config, "data"), _section(config, "engine")
    learners = config.get("learners") or []
    encoders = [
        f"{learner.get('modality', '?')}: {learner.get('name', '?')}"
        for learner in learners
        if isinstance(learner, dict)
    ]
    epochs = _shown(engine.get("epochs"))
    return {
        "State": run.state,
        "Method": _shown(_section(config, "method").get("name")),
        "Data": _shown(data.get("path")),
        "Learners": ", ".join(encoders) or "none",
        "Seed": _shown(config.get("seed")),
        "Batch": _shown(data.get("batch")),
        "Precision": _shown(engine.get("precision")),
        "Steps": str(run.step),
        "Epoch": f"{newest.epoch + 1 if newest else 0} of {epochs}",
        "Stage": newest.stage if newest else "not begun",
        "Checkpoint": run.checkpoints[-1] if run.checkpoints else "none",
        "Metrics written": _moment(run.changed),
        "Folder": str(run.root),
    }


def _state_text(run: RunRecord) -> str:
    torn = " The last line of its metrics.jsonl is half written and left out." if run.torn else ""
    if run.state == "being written":
        return (
            f"{run.name} is still being written: this page shows what was there at step "
            f"{run.step}. Make it again for more.{torn}"
        )
    return (
        f"{run.name} is not finished: it was stopped, or runs where its lock cannot be seen. This "
        f"page shows what it wrote up to step {run.step}.{torn}"
    )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def _moment(seconds: float) -> str:
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    return shown if seconds else "never"
