"""`outmodal data build|index|check|stats|show`: make data sets and look at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse, progress_bar
from outmodal.launch.cli import Outcome

USAGE = """usage: outmodal data COMMAND ...

  build fashion-speech --out DIR   real images, spoken class names and text of 10 classes
  build six-view --out DIR         six feature views of the same handwritten digits
  build folder --source DIR --out DIR   your own files: a tree split/class/..., or a CSV
  index DIR     make dataset.json for tars that other tools wrote
  check DIR     verify every shard and decode every sample
  stats DIR     counts, sizes, classes, missing modalities
  show DIR      draw a contact sheet (PNG)

example: outmodal data build fashion-speech --out fashion --train 10000 --workers 2
"""


@dataclass(frozen=True)
class CheckArgs:
    """Verify sizes, checksums, counts, labels, and decode every member."""

    dataset: str
    """Folder of the data set."""
    workers: int = 0
    """Processes; 0 works in this one."""


@dataclass(frozen=True)
class StatsArgs:
    """Counts, sizes, class balance and missing-modality rates."""

    dataset: str
    """Folder of the data set."""


@dataclass(frozen=True)
class ShowArgs:
    """Draw a contact sheet: one row a sample, one column a modality."""

    dataset: str
    """Folder of the data set."""
    out: Path = Path("contact-sheet.png")
    """PNG file to write."""
    split: str = "train"
    rows: int = 8


@dataclass(frozen=True)
class IndexArgs:
    """Make dataset.json for tars with members `<key>.<modality>.<ext>`."""

    folder: Path
    """Folder with SPLIT-NNNNNN.tar files."""
    name: str = ""
    """Name of the data set; the folder's name where empty."""
    classes: tuple[str, ...] = ()
    """Class names in label order; the labels found where empty."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    commands: dict[str, Callable[[list[str]], Outcome]] = {
        "build": _build,
        "index": _index,
        "check": _check,
        "stats": _stats,
        "show": _show,
    }
    if not argv or argv[0] in ("-h", "--help"):
        return Outcome({}, USAGE)
    if argv[0] not in commands:
        raise UserError(f"unknown command 'data {argv[0]}'{nearest(argv[0], commands)}")
    return commands[argv[0]](list(argv[1:]))


def _positional(schema: type[Any], argv: list[str], verb: str, key: str, sample: str) -> Any:
    """Parse with the first bare argument as `--key`."""
    if argv and not argv[0].startswith("-"):
        argv = [f"--{key}", *argv]
    prog = f"outmodal data {verb}"
    return parse(schema, argv, prog=prog, example=f"{prog} {sample}")


def _build(argv: list[str]) -> Outcome:
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


def _index(argv: list[str]) -> Outcome:
    from outmodal.data.index import index_folder

    args = _positional(IndexArgs, argv, "index", "folder", "DATASET")
    manifest = index_folder(args.folder, args.name or None, args.classes or None)
    counts = {name: split.samples for name, split in manifest.splits.items()}
    return Outcome(
        {"dataset": str(args.folder.absolute()), "samples": counts},
        f"wrote {args.folder / 'dataset.json'}: {counts}, {', '.join(manifest.modalities)}",
    )


def _check(argv: list[str]) -> Outcome:
    from outmodal.data.check import check_dataset
    from outmodal.data.manifest import open_dataset

    args = _positional(CheckArgs, argv, "check", "dataset", "DATASET --workers 2")
    dataset = open_dataset(args.dataset, verify=False)
    total = sum(len(split.shards) for split in dataset.manifest.splits.values())
    with progress_bar(total, "check", "shard") as bar:
        report = check_dataset(dataset, args.workers, lambda done, total: bar.update(done - bar.n))
    text = f"{report.samples} samples in {report.shards} shards: "
    text += "all good" if report.ok else f"{len(report.problems)} problems"
    text = "\n".join([text, *report.problems])
    return Outcome(dataclasses.asdict(report), text, 0 if report.ok else 2)


def _stats(argv: list[str]) -> Outcome:
    import yaml

    from outmodal.data.manifest import open_dataset
    from outmodal.data.stats import dataset_stats

    args = _positional(StatsArgs, argv, "stats", "dataset", "DATASET")
    stats = dataset_stats(open_dataset(args.dataset))
    return Outcome(stats, yaml.safe_dump(stats, sort_keys=False))


def _show(argv: list[str]) -> Outcome:
    from outmodal.data.manifest import open_dataset
    from outmodal.data.show import show_dataset

    args = _positional(ShowArgs, argv, "show", "dataset", "DATASET --out sheet.png")
    path = show_dataset(open_dataset(args.dataset), args.split, args.out, args.rows)
    return Outcome({"image": str(Path(path).absolute())}, f"wrote {path}")
