"""What the model card of an export says about the run behind it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from outmodal.data.opening import open_data
from outmodal.launch.config import RunConfig
from outmodal.launch.plots import read_metrics
from outmodal.models.card import CardInfo
from outmodal.models.perceptors import imagebind, languagebind
from outmodal.train.methods.outside import OutsideSettings

_LICENCES = {
    "imagebind": imagebind.HOME.licence,
    "languagebind": languagebind.HOME.licence,
    "hub": "see that model's own card",
    "exported": "an export of outmodal: see its own model card",
}


def card_for(config: RunConfig, run: Path, ema: bool = True) -> CardInfo:
    """Collect a run's facts: data, method, metrics, perceptors, and how to repeat it.

    Args:
        config: The run's configuration.
        run: Its folder.
        ema: Whether the averaged weights are exported, where the run kept them.
    """
    manifest = open_data(config.data).manifest
    perceptors = {m.perceptor for m in manifest.modalities.values() if m.perceptor}
    perceptors |= {f"{p.name}:{_without_folder(p.path)}" for p in config.perceptors}
    helper = getattr(config.method, "helper", None)
    if helper is not None:
        perceptors.add(f"{helper.name}:{_without_folder(helper.path)}")
    averaged = config.engine.ema > 0
    return CardInfo(
        name=run.name,
        method=config.method.name,
        data=manifest.name,
        command=f"outmodal train training.yaml {_options(config)}--out RUN",
        recipe=recipe_of(config, manifest.name),
        metrics=_last_evaluation(run),
        perceptors=sorted(perceptors),
        licences=_licences(perceptors),
        details={
            "seed": str(config.seed),
            "epochs": str(config.engine.epochs),
            "batch": str(config.data.batch),
            "optimizer": f"{config.optim.name}, learning rate {config.optim.lr:g}",
            "training samples": str(manifest.splits[config.data.train_split].samples),
            "metrics are of": f"split {config.data.eval_split}",
            "weights": f"moving average ({config.engine.ema:g})" if averaged and ema else "last",
        },
        limits=_METRICS_OF_THE_AVERAGE if averaged and not ema else (),
    )


_METRICS_OF_THE_AVERAGE = (
    "The metrics are of the run's averaged weights; these are the last step's.",
)


def recipe_of(config: RunConfig, data: str) -> str:
    """The configuration as YAML for another machine: absolute paths lose their folders, and the
    data set is named instead of where it lay (the data sets of a mixture keep their names)."""
    values = _portable(config.model_dump(mode="json"))
    values["out"] = ""
    if not values["data"]["mix"]:
        values["data"]["path"] = data
    return yaml.safe_dump(values, sort_keys=False, width=100)


def _options(config: RunConfig) -> str:
    return _code_option(config) + _data_option(config)


def _data_option(config: RunConfig) -> str:
    """What says where the data lie; the file of a mixture's run names them itself."""
    return "" if config.data.mix else "--data.path DATASET "


def _code_option(config: RunConfig) -> str:
    """What names the code of a method from outside, which an export does not hold."""
    if not isinstance(config.method, OutsideSettings):
        return ""
    return f"--method.path {_without_folder(config.method.path)} "


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    return _without_folder(value) if isinstance(value, str) else value


def _without_folder(text: str) -> str:
    """The last part of an absolute path; anything else as it is."""
    path = Path(text)
    return path.name if path.is_absolute() or text.startswith("~") else text


def _licences(perceptors: Iterable[str]) -> dict[str, str]:
    """The licence of each perceptor's weights, as far as its family tells."""
    return {p: _LICENCES.get(p.partition(":")[0], "not recorded") for p in perceptors}


def _last_evaluation(run: Path) -> dict[str, float]:
    if not (run / "metrics.jsonl").is_file():
        return {}
    found = [line["values"] for line in read_metrics(run) if line["split"] == "eval"]
    last = found[-1] if found else {}
    return {name: value for name, value in last.items() if value is not None}  # not finite then
