"""`outmodal embed DATASET --perceptor P --out DATASET2`: features computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from outmodal.errors import UserError
from outmodal.launch.arguments import parse, progress_bar
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.models.perceptors.base import PerceptorBase


@dataclass(frozen=True)
class EmbedArgs:
    """Run frozen perceptors once over a data set and write their features as vectors."""

    dataset: str
    """Folder of the data set."""
    perceptor: tuple[str, ...]
    """Folders of exported encoders, or MODALITY=FOLDER for any transformers model."""
    out: Path
    """Folder of the new data set."""
    keep: tuple[str, ...] = ()
    """Modalities to pass through byte for byte."""
    dtype: Literal["float32", "float16"] = "float32"
    batch: int = 256


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    from outmodal.data.manifest import open_dataset
    from outmodal.models.embed import embed_dataset
    from outmodal.models.perceptors import load_perceptor

    args = list(argv)
    if args and not args[0].startswith("-"):
        args = ["--dataset", *args]
    example = "outmodal embed DATASET --perceptor image-encoder --keep speech --out FEATURES"
    parsed = parse(EmbedArgs, args, prog="outmodal embed", example=example)
    dataset = open_dataset(parsed.dataset)
    perceptors = [load_perceptor(perceptor_config(text), dataset) for text in parsed.perceptor]
    if not perceptors:
        raise UserError(f"--perceptor is missing: {example}")
    total = sum(split.samples for split in dataset.manifest.splits.values())
    with progress_bar(total, "embed", "sample") as bar:
        features = embed_dataset(
            dataset,
            perceptors,
            parsed.keep,
            parsed.out,
            parsed.dtype,
            parsed.batch,
            lambda done, total: bar.update(done - bar.n),
        )
    made = {p.modality: {"dim": p.dim, "perceptor": p.identity} for p in perceptors}
    text = "\n".join(f"{m}: {d['dim']} numbers by {d['perceptor']}" for m, d in made.items())
    data = {"dataset": str(features.root.absolute()), "modalities": made}
    return Outcome(data, f"{text}\nwrote {features.root}")


def perceptor_config(text: str) -> PerceptorBase:
    """`FOLDER` is an export of ours; `MODALITY=FOLDER` any transformers model."""
    from outmodal.models.perceptors import ExportedPerceptor, HubPerceptor

    modality, equals, path = text.partition("=")
    if not equals:
        return ExportedPerceptor(path=text)
    if (Path(path) / "outmodal.json").is_file():
        return ExportedPerceptor(path=path, modality=modality)
    return HubPerceptor(path=path, modality=modality)
