"""`outmodal data build SOURCE --out DIR`: make a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse, progress_bar
from outmodal.launch.cli import Outcome

USAGE = """usage: outmodal data build SOURCE --out DIR ...

  fashion-speech --out DIR   real images, spoken class names and text of 10 classes
  six-view --out DIR         six feature views of the same handwritten digits
  folder --source DIR --out DIR   your own files: a tree split/class/..., or a CSV
  imagenet --source DIR --out DIR   ImageNet-1K: train/ and val/, or a Parquet export
  imagenet-v2, imagenet-r, imagenet-a, imagenet-sketch, imagenet-stylized, imagenet-c
    --source DIR --like IMAGENET --out DIR   sets that its classifiers are evaluated on

example: outmodal data build fashion-speech --out fashion --train 10000 --workers 2
"""


EVALUATION = ("v2", "r", "a", "sketch", "stylized", "c")
REPORT = "build-report.json"

_HINTS = {"folder": " --source DIR", "imagenet": " --source DIR"}
_MANY = 10  # splits


def run(argv: list[str]) -> Outcome:
    """Entry point of the command."""
    if not argv or argv[0] in ("-h", "--help"):
        return Outcome({}, USAGE)
    sources: dict[str, Callable[[list[str]], Outcome]] = {
        "fashion-speech": _build_fashion,
        "six-view": _build_six_view,
        "folder": _build_folder,
        "imagenet": _build_imagenet,
        **{f"imagenet-{kind}": partial(_build_imagenet_eval, kind) for kind in EVALUATION},
    }
    if argv[0] not in sources:
        raise UserError(f"unknown source '{argv[0]}'{nearest(argv[0], sources)}")
    return sources[argv[0]](argv[1:])


def _build_fashion(argv: list[str]) -> Outcome:
    from outmodal.data.build.fashion_speech import FashionSpeechConfig, build_fashion_speech

    return _built("fashion-speech", argv, FashionSpeechConfig, build_fashion_speech)


def _build_six_view(argv: list[str]) -> Outcome:
    from outmodal.data.build.six_view import SixViewConfig, build_six_view

    return _built("six-view", argv, SixViewConfig, build_six_view)


def _build_folder(argv: list[str]) -> Outcome:
    from outmodal.data.build.folder import FolderConfig, build_folder

    return _built("folder", argv, FolderConfig, build_folder)


def _build_imagenet(argv: list[str]) -> Outcome:
    from outmodal.data.build.imagenet import ImagenetConfig, build_imagenet

    return _built("imagenet", argv, ImagenetConfig, build_imagenet)


def _build_imagenet_eval(kind: str, argv: list[str]) -> Outcome:
    from outmodal.data.build.imagenet_eval import ImagenetEvalConfig, build_imagenet_eval

    words = ["--kind", kind, *argv]
    return _built(f"imagenet-{kind}", words, ImagenetEvalConfig, build_imagenet_eval)


def _built(source: str, argv: list[str], schema: type[Any], build: Callable[..., Any]) -> Outcome:
    from outmodal.launch.commands.train import take_option

    out, argv = take_option(argv, "--out")
    workers, argv = take_option(argv, "--workers")
    prog = f"outmodal data build {source}"
    hint = f"{prog} --out DATASET --workers 2{_HINTS.get(source.partition('-')[0], '')}"
    if source.startswith("imagenet-"):
        hint += " --like IMAGENET"
    config = parse(schema, argv, prog=prog, example=hint)
    if out is None:
        raise UserError(f"--out is missing: name the folder of the new data set ({hint})")
    if workers is not None and not workers.isdigit():
        raise UserError(f"--workers {workers}: give a number of processes")
    bars: dict[str, Any] = {}

    def progress(done: int, total: int) -> None:
        if "bar" not in bars:
            bars["bar"] = progress_bar(total, source, "sample")
        bars["bar"].update(done - bars["bar"].n)

    dataset = build(config, Path(out), int(workers or 1), progress)
    if "bar" in bars:
        bars["bar"].close()
    counts = {name: split.samples for name, split in dataset.manifest.splits.items()}
    shown = ", ".join(f"{n} {name}" for name, n in counts.items())
    data = {"dataset": str(dataset.root.absolute()), "samples": counts, **_report(dataset.root)}
    text = f"{shown if len(counts) < _MANY else f'{sum(counts.values())} test'} samples"
    done = data.get("report", {}).get("done", {})
    told = f" ({', '.join(f'{n} {what}' for what, n in done.items())})" if done else ""
    return Outcome(data, f"{text} in {dataset.root}{told}")


def _report(root: Path) -> dict[str, Any]:
    """What a builder has left to say of its source, without lists of files."""
    try:
        held = json.loads((root / REPORT).read_bytes())
    except FileNotFoundError:
        return {}
    return {"report": {**held, "skipped": len(held["skipped"]), "file": REPORT}}
