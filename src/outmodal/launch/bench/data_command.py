"""Options of `outmodal bench data`, and what is done with them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.data.manifest import Dataset
    from outmodal.launch.bench.data import Settings

EXAMPLE = "outmodal bench data --workers 1 2 --transcoded --kinds image audio"
KINDS = ("image", "audio", "video", "npy")
FLAGS = ("transcoded", "resume")


@dataclass(frozen=True)
class DataArgs:
    """How fast data are read: this loader beside webdataset with plain decoders, over the same
    shards in one run; pictures beside what open_clip trains with, at the same random crops.

    Figures are samples per second of CPU time and per second on the wall, medians over rounds in
    which the alternatives take turns. `speedup` is the ratio per CPU-second, of the number of
    workers where it is least."""

    data: str = ""
    """Data set whose pictures are read; two photographs in many variations where none is given."""
    modality: str = ""
    """Its pictures; the only ones where none is named."""
    kinds: tuple[str, ...] = ("image",)
    """image; audio (wav, flac, ogg, opus), video and npy, which it makes itself."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of decode threads, and of the peer's worker processes."""
    samples: int = 1024
    """Pictures that are made; a quarter as many sounds and films, four times as many arrays."""
    rounds: int = 3
    """Epochs of each alternative."""
    batch: int = 64
    """Rows of a batch."""
    size: int = 224
    """Height and width of the crops."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of a picture's area; open_clip's own default is 0.9 1.0."""
    transcoded: bool = False
    """Also read shards that `outmodal data transcode` makes of the same pictures."""
    resume: bool = False
    """Also measure how long a start late in an epoch of many shards takes."""
    threads: int = 1
    """Threads of torch's own loops."""


def run_data(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = parse(DataArgs, _with_flags(argv), prog="outmodal bench data", example=EXAMPLE)
    _refuse(args)
    import torch

    from outmodal.launch.bench.data import Settings, table

    torch.set_num_threads(args.threads)
    settings = Settings(
        samples=args.samples,
        workers=args.workers,
        rounds=args.rounds,
        batch=args.batch,
        size=args.size,
        scale=args.scale,
    )
    with tempfile.TemporaryDirectory(prefix="outmodal-bench-") as folder:
        result = _run(args, settings, Path(folder))
    return Outcome(result, table(result))


def _with_flags(argv: Sequence[str]) -> list[str]:
    """Let `--transcoded` stand for `--transcoded True`."""
    args = list(argv)
    for flag in FLAGS:
        for place in [n for n, word in enumerate(args) if word == f"--{flag}"]:
            if args[place + 1 : place + 2] not in (["True"], ["False"]):
                args[place] = f"--{flag}=True"
    return args


def _run(args: DataArgs, settings: Settings, folder: Path) -> dict[str, Any]:
    from outmodal.launch.bench.data import as_settings, bench_kinds

    result: dict[str, Any] = {"settings": as_settings(settings)}
    if "image" in args.kinds:
        result |= _pictures(args, settings, folder)
    others = [kind for kind in args.kinds if kind != "image"]
    if others:
        result["kinds"] = bench_kinds(folder, others, settings)
    if args.resume:
        from outmodal.launch.bench.resume import measure_resume

        result["resume"] = measure_resume(folder / "resume")
    return result


def _pictures(args: DataArgs, settings: Settings, folder: Path) -> dict[str, Any]:
    from outmodal.data.manifest import open_dataset
    from outmodal.data.transcode import transcode
    from outmodal.launch.bench.data import bench_pictures, own_photos

    if args.data:
        dataset, about = open_dataset(args.data), args.data
        modality = _modality(dataset, args.modality)
    else:
        dataset, about = own_photos(folder / "photos", args.samples)
        modality = "image"
    smaller = None
    if args.transcoded:
        transcode(dataset, folder / "smaller", modalities=(modality,))
        smaller = open_dataset(folder / "smaller")
    found = bench_pictures(dataset, modality, settings, smaller)
    speedups = {name: value for name, value in found.items() if name.startswith("speedup")}
    return {"pictures": found, "pictures_from": about, **speedups}


def _modality(dataset: Dataset, name: str) -> str:
    """The pictures to read."""
    pictures = [m for m, spec in dataset.manifest.modalities.items() if spec.kind == "image"]
    if name and name not in pictures:
        raise UserError(f"{dataset.where}: no pictures '{name}'{nearest(name, pictures)}")
    if not name and len(pictures) != 1:
        held = ", ".join(pictures) or "none"
        raise UserError(f"{dataset.where}: name the pictures with --modality (it has {held})")
    return name or pictures[0]


def _refuse(args: DataArgs) -> None:
    """Refuse numbers and names that nothing can be measured with."""
    for name in args.kinds:
        if name not in KINDS:
            raise UserError(f"unknown kind '{name}'{nearest(name, KINDS)}")
    if not args.kinds and not args.resume:
        raise UserError(f"--kinds names none: give some of {', '.join(KINDS)}, or --resume")
    for option in ("rounds", "batch", "size", "threads"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} must be at least 1, got {getattr(args, option)}")
    if not args.workers or any(count not in range(1, 9) for count in args.workers):
        raise UserError(f"--workers counts 1 to 8, got {list(args.workers)}")
    if not args.data and args.samples < max(8, args.batch * max(args.workers)):
        raise UserError(
            f"--samples {args.samples} is less than a batch of each worker: give at least "
            f"{max(8, args.batch * max(args.workers))}"
        )
    low, high = args.scale
    if not 0 < low <= high <= 1:
        raise UserError(f"--scale is two shares of 0 to 1 in order, got {low:g} {high:g}")
