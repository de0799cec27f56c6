"""`outmodal data build SOURCE --out DIR`: make a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse, progress_bar
from outmodal.launch.cli import Outcome

USAGE = """usage: outmodal data build SOURCE --out DIR ...

  fashion-speech --out DIR   real images, spoken class names and text of 10 classes
  six-view --out DIR         six feature views of the same handwritten digits
  folder --source DIR --out DIR   your own files: a tree split/class/..., or a CSV

example: outmodal data build fashion-speech --out fashion --train 10000 --workers 2
"""


def run(argv: list[str]) -> Outcome:
    """Entry point of the command."""
    if not argv or argv[0] in ("-h", "--help"):
        return Outcome({}, USAGE)
    sources = {
        "fashion-speech": _build_fashion,
        "six-view": _build_six_view,
        "folder": _build_folder,
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


def _built(source: str, argv: list[str], schema: type[Any], build: Callable[..., Any]) -> Outcome:
    from outmodal.launch.commands.train import take_option

    out, argv = take_option(argv, "--out")
    workers, argv = take_option(argv, "--workers")
    prog = f"outmodal data build {source}"
    hint = f"{prog} --out DATASET --workers 2" + (" --source DIR" if source == "folder" else "")
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
    data = {"dataset": str(dataset.root.absolute()), "samples": counts}
    return Outcome(data, f"{shown} samples in {dataset.root}")
