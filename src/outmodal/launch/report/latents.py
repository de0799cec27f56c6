"""Latents of synergy runs in one map: the learner alone, the helper's targets, and in between them
the latents that were trained with both (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from outmodal.launch.report.charts import Chart, Charts, names
from outmodal.launch.report.embedding import Map, embedding_map
from outmodal.launch.report.measure import HELPER, Measured
from outmodal.launch.report.reading import RunRecord


@dataclass(frozen=True)
class Joined:
    """Two runs in one map.

    Attributes:
        name: Of both.
        measured: Their latents and the targets, one after the other.
        laid_out: The map.
    """

    name: str
    measured: Measured
    laid_out: Map


def joined(runs: Sequence[RunRecord], measured: Mapping[str, Measured]) -> list[Joined]:
    """A map of each synergy run together with the first one at alpha 0 whose latents have the same
    size and the same split."""
    ours = [run for run in runs if run.name in measured and HELPER in measured[run.name].features]
    alone = [run for run in ours if _alpha(run) == 0]
    found = []
    for run in ours:
        if _alpha(run) == 0:
            continue
        fits = [base for base in alone if _alike(measured[base.name], measured[run.name])]
        if not fits:
            continue
        both = _joined(measured[fits[0].name], measured[run.name])
        laid_out = embedding_map(both)
        if laid_out is not None:
            found.append(Joined(f"{fits[0].name} and {run.name}", both, laid_out))
    return found


def curves(runs: Sequence[RunRecord]) -> list[Chart]:
    """The latents' loss and their distances to the targets over training."""
    charts, known = Charts(runs), names(runs, "diagnostics")
    titles = {
        "latent/loss": ("Latent loss", "Mean distance of evaluation latents to a draw of targets."),
        "latent/w2": (
            "W2 of latents and targets, Gaussian estimate",
            "By means and shrunk covariances; each set at unit mean norm.",
        ),
        "latent/sliced_w2": (
            "Sliced W2 of latents and targets",
            "Over 512 directions; each set at unit mean norm. Smaller than W2 by its making.",
        ),
    }
    return [
        chart
        for name, (title, note) in titles.items()
        if name in known
        for chart in charts.of(name, title, note, [("diagnostics", name)], label=lambda _: "")
    ]


def _alpha(run: RunRecord) -> float | None:
    method = run.config.get("method") or {}
    return float(method["alpha"]) if "alpha" in method else None


def _alike(a: Measured, b: Measured) -> bool:
    sizes = {m.features[HELPER].shape[1] for m in (a, b)}
    return len(sizes) == 1 and a.split == b.split and a.classes == b.classes


def _joined(alone: Measured, trained: Measured) -> Measured:
    z0, z1 = (next(z for name, z in m.features.items() if name != HELPER) for m in (alone, trained))
    first = torch.arange(len(z0) + len(z1)) < len(z0)
    rows = {
        "learner alone": (torch.cat([z0, torch.zeros_like(z1)]), first & _there(alone, trained)),
        HELPER: (
            torch.cat([torch.zeros_like(z0), trained.features[HELPER]]),
            torch.cat([torch.zeros(len(z0), dtype=torch.bool), trained.present[HELPER]]),
        ),
        "trained": (torch.cat([torch.zeros_like(z0), z1]), ~first & _there(alone, trained)),
    }
    return Measured(
        trained.checkpoint,
        trained.split,
        len(first),
        len(first),
        trained.classes,
        torch.cat([alone.label, trained.label]),
        features={name: z for name, (z, _) in rows.items()},
        present={name: there for name, (_, there) in rows.items()},
    )


def _there(alone: Measured, trained: Measured) -> torch.Tensor:
    parts = (next(p for n, p in m.present.items() if n != HELPER) for m in (alone, trained))
    return torch.cat(list(parts))
