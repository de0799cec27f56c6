"""`outmodal data transcode DATASET --out DIR`: the data set again with smaller pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from outmodal.errors import UserError
from outmodal.launch.arguments import parse_positional, progress_bar
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.data.transcode import Transcoding


@dataclass(frozen=True)
class TranscodeArgs:
    """Write a data set with pictures whose shorter side has --side pixels, as JPEG.

    Training at 224 pixels reads them several times faster. Keys, labels, splits and all other
    members stay as they are, and so do pictures that are smaller already. The original is only
    read. A run that was stopped goes on when it is repeated."""

    dataset: tuple[str, ...]
    """Folder or address of the data set."""
    out: str = ""
    """Folder of the new data set."""
    side: int = 256
    """Shorter side in pixels."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    modality: tuple[str, ...] = ()
    """Pictures to transcode; all JPEG ones where none is named. Others become JPEG."""
    workers: int = 0
    """Processes; 0 works in this one. The bytes do not depend on it."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = parse_positional(
        TranscodeArgs,
        list(argv),
        "dataset",
        prog="outmodal data transcode",
        sample="DATASET --out SMALLER --workers 2",
    )
    if len(args.dataset) != 1:
        raise UserError(
            "name one data set to transcode (outmodal data transcode DATASET --out DIR)"
        )
    if not args.out:
        raise UserError("--out names the folder of the new data set: give it")
    if args.side < 8:
        raise UserError(f"--side must be at least 8, got {args.side}")
    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality must be 1 to 100, got {args.quality}")
    if args.workers < 0:
        raise UserError(f"--workers must not be negative, got {args.workers}")
    done = _transcode(args)
    data = {**asdict(done), "out": str(done.out)}
    return Outcome(data, _text(data))


def _transcode(args: TranscodeArgs) -> Transcoding:
    from pathlib import Path

    from outmodal.data.manifest import open_dataset
    from outmodal.data.transcode import transcode

    dataset = open_dataset(args.dataset[0])
    shards = sum(len(split.shards) for split in dataset.manifest.splits.values())
    with progress_bar(shards, "transcode", "shard") as bar:
        return transcode(
            dataset,
            Path(args.out).expanduser(),
            side=args.side,
            quality=args.quality,
            modalities=args.modality,
            workers=args.workers,
            progress=lambda done, total: bar.update(done - bar.n),
        )


def _text(data: dict[str, Any]) -> str:
    before, after = data["bytes_before"], data["bytes_after"]
    lines = [
        f"{data['written']:,} pictures made smaller, {data['kept']:,} left as they are; "
        f"{before / 1e6:.1f} MB became {after / 1e6:.1f} MB: {data['out']}"
    ]
    if data["broken"]:
        lines.append(
            f"{data['broken']:,} pictures cannot be decoded (or hold 16 bits) and were copied as "
            "they are: see `outmodal data check`"
        )
    return "\n".join(lines)
