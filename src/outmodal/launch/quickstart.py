"""The main job from end to end, on real data that the package carries.

shards -> check -> align image and text -> export both -> freeze them as perceptors ->
cache their features -> COX on speech with 10 % labels, ERM beside it -> evaluation ->
export -> reload with plain transformers.AutoModel in a fresh process
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outmodal.data.check import check_dataset
from outmodal.data.embedded import embedded_dataset
from outmodal.data.manifest import Dataset
from outmodal.data.show import show_dataset
from outmodal.errors import UserError
from outmodal.launch.arguments import progress_bar
from outmodal.launch.card import card_for
from outmodal.launch.config import RunConfig, load_config, set_keys
from outmodal.launch.plots import draw_runs
from outmodal.launch.running import run_plan
from outmodal.models.embed import embed_dataset
from outmodal.models.perceptors import ExportedPerceptor, load_perceptor
from outmodal.models.reload_check import reload_check
from outmodal.train.exporting import export_run
from outmodal.train.run import RunResult, train

KNOWN = ("image", "text")
UNKNOWN = "speech"
METHODS = ("random", "erm", "cox")
RELOAD_TOLERANCE = 1e-5


class Steps:
    """Announces the parts of the flow on stderr and keeps how long each took."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Time one part."""
        sys.stderr.write(f"[{len(self.seconds) + 1}/{self.total}] {what}\n")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


def quickstart(out: Path, seed: int) -> dict[str, Any]:
    """Run the flow into `out`; parts that are already done there are not repeated.

    Returns:
        JSON-able results: accuracies in 0..1 under "chance" and each method's name, absolute
        paths under "run", "export" and others, seconds per part.
    """
    steps = Steps(8)
    with steps.step("check", "verify the embedded shards"):
        dataset = _checked_dataset()
        sheet = show_dataset(dataset, "train", out / "samples.png", 6)
    with steps.step("align", f"align {' and '.join(KNOWN)}: these become the perceptors"):
        aligned = _train("quickstart-align", out / "align", seed, dataset.root)
    with steps.step("perceptors", "export both encoders and freeze them"):
        exports = [_exported(out / "align", out / "perceptors" / m, m) for m in KNOWN]
    with steps.step("features", "compute the perceptors' features once"):
        features = _embedded_features(dataset, exports, out / "features")
    results: dict[str, RunResult] = {}
    for method in METHODS:
        with steps.step(method, f"{method} on {UNKNOWN} with 10 % labels"):
            results[method] = _train("quickstart", out / method, seed, features.root, method)
    with steps.step("export", "export the learner and reload it without outmodal"):
        export = _exported(out / "cox", out / "export", UNKNOWN)
        difference = reload_check(export)
        if difference > RELOAD_TOLERANCE:
            raise UserError(f"the export {export} differs from the trainer by {difference:g}")
        picture = draw_runs({m: out / m for m in METHODS}, out / "quickstart.png")
    return {
        "chance": 1 / len(dataset.manifest.classes),
        **{m: results[m].metrics["top1"] for m in METHODS},
        "aligned": dict(aligned.metrics),
        "reload_difference": difference,
        "run": str(out / "cox"),
        "export": str(export),
        "runs": {m: str(out / m) for m in ("align", *METHODS)},
        "perceptors": {m: str(out / "perceptors" / m) for m in KNOWN},
        "data": str(dataset.root),
        "features": str(features.root),
        "samples": str(sheet),
        "picture": str(picture),
        "seconds": steps.seconds,
    }


def _checked_dataset() -> Dataset:
    dataset = embedded_dataset()
    total = sum(split.samples for split in dataset.manifest.splits.values())
    with progress_bar(total, "check", "sample") as bar:
        report = check_dataset(dataset, 0, lambda done, total: bar.update(done - bar.n))
    if not report.ok:
        raise UserError("; ".join(map(str, report.problems)))
    return dataset


def _config(recipe: str, seed: int, data: Path, method: str | None) -> RunConfig:
    overrides = ["--seed", str(seed), "--data.path", str(data)]
    if method is not None:
        overrides += ["--method.name", method]
    return load_config(recipe, overrides)


def _train(recipe: str, out: Path, seed: int, data: Path, method: str | None = None) -> RunResult:
    config = _config(recipe, seed, data, method)
    return train(run_plan(set_keys(config, {"out": str(out)}), out))


def _exported(run: Path, to: Path, modality: str) -> Path:
    from outmodal.launch.running import open_run

    config, plan = open_run(run)
    return export_run(plan, to, card_for(config, run), modality=modality, force=True)


def _embedded_features(dataset: Dataset, exports: list[Path], out: Path) -> Dataset:
    perceptors = [load_perceptor(ExportedPerceptor(path=str(e)), dataset) for e in exports]
    total = sum(split.samples for split in dataset.manifest.splits.values())
    with progress_bar(total, "embed", "sample") as bar:
        return embed_dataset(
            dataset,
            perceptors,
            (UNKNOWN,),
            out,
            progress=lambda done, total: bar.update(done - bar.n),
        )


def summary(result: dict[str, Any]) -> str:
    """The table and the places, for people."""
    rows = [("chance", result["chance"]), *[(m, result[m]) for m in METHODS]]
    table = "\n".join(f"  {name:<8} {value:6.1%}" for name, value in rows)
    places = {
        "run": result["run"],
        "export": result["export"],
        "features": result["features"],
        "samples": result["samples"],
        "picture": result["picture"],
    }
    where = "\n".join(f"  {name:<9} {path}" for name, path in places.items())
    total = sum(result["seconds"].values())
    return (
        f"accuracy on {UNKNOWN} of the test split:\n{table}\n"
        f"reloaded with transformers.AutoModel in a fresh process: embeddings differ by at most "
        f"{result['reload_difference']:.1e}\n"
        f"where everything lies ({total:.0f} s in all):\n{where}"
    )
