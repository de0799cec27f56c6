"""What the model card of an export says about the run behind it."""

from __future__ import annotations

from pathlib import Path

from outmodal.data.manifest import open_dataset
from outmodal.launch.config import RunConfig
from outmodal.launch.plots import read_metrics
from outmodal.models.card import CardInfo


def card_for(config: RunConfig, run: Path) -> CardInfo:
    """Collect a run's facts: data, method, metrics, perceptors, and how to repeat it."""
    manifest = open_dataset(config.data.path).manifest
    perceptors = {m.perceptor for m in manifest.modalities.values() if m.perceptor}
    return CardInfo(
        name=run.name,
        method=config.method.name,
        data=manifest.name,
        command="outmodal train config.yaml --out RUN   # the run's own config.yaml",
        metrics=_last_evaluation(run),
        perceptors=sorted(perceptors | {p.path for p in config.perceptors}),
        details={
            "seed": str(config.seed),
            "epochs": str(config.engine.epochs),
            "batch": str(config.data.batch),
            "optimizer": f"{config.optim.name}, learning rate {config.optim.lr:g}",
        },
    )


def _last_evaluation(run: Path) -> dict[str, float]:
    if not (run / "metrics.jsonl").is_file():
        return {}
    found = [line["values"] for line in read_metrics(run) if line["split"] == "eval"]
    return dict(found[-1]) if found else {}
