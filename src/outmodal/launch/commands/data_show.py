"""`outmodal data show DIR`: a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from outmodal.launch.arguments import parse_positional
from outmodal.launch.cli import Outcome


@dataclass(frozen=True)
class ShowArgs:
    """Draw a contact sheet: one row a sample, one column a modality."""

    dataset: str
    """Folder or address of the data set."""
    out: Path = Path("contact-sheet.png")
    """PNG file to write."""
    split: str = "train"
    rows: int = 8
    """Samples to draw."""
    classes: tuple[str, ...] = ()
    """Only samples of these classes, the same number of each."""
    seed: int | None = None
    """Draw samples at random by this seed; evenly spread ones where it is not given."""


def run(argv: list[str]) -> Outcome:
    """Entry point of the command."""
    from outmodal.data.manifest import open_dataset
    from outmodal.data.show import show_dataset

    example = "DATASET --out sheet.png --rows 12 --seed 1"
    args = parse_positional(ShowArgs, argv, "dataset", prog="outmodal data show", sample=example)
    path = show_dataset(
        open_dataset(args.dataset),
        args.split,
        args.out,
        args.rows,
        classes=args.classes,
        seed=args.seed,
    )
    return Outcome({"image": str(Path(path).absolute())}, f"wrote {path}")
