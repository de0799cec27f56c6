"""`outmodal data index DIR`: a manifest for tars that other tools wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from outmodal.launch.arguments import parse_positional
from outmodal.launch.cli import Outcome


@dataclass(frozen=True)
class IndexArgs:
    """Make dataset.json for tars with members `<key>.<modality>.<ext>`, and their index files."""

    folder: Path
    """Folder with SPLIT-NNNNNN.tar files."""
    name: str = ""
    """Name of the data set; the folder's name where empty."""
    classes: tuple[str, ...] = ()
    """Class names in label order; the labels found where empty."""


def run(argv: list[str]) -> Outcome:
    """Entry point of the command."""
    from outmodal.data.index import index_folder
    from outmodal.data.shard_index_file import index_name

    args = parse_positional(IndexArgs, argv, "folder", prog="outmodal data index", sample="DATASET")
    manifest = index_folder(args.folder, args.name or None, args.classes or None)
    counts = {name: split.samples for name, split in manifest.splits.items()}
    files = [index_name(s.file) for split in manifest.splits.values() for s in split.shards]
    return Outcome(
        {"dataset": str(args.folder.absolute()), "samples": counts, "indexes": files},
        f"wrote {args.folder / 'dataset.json'}: {counts}, {', '.join(manifest.modalities)}; and "
        f"{len(files)} index files: {files[0]}{', ...' if len(files) > 1 else ''}",
    )
