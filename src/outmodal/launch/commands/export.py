"""`outmodal export RUN --to DIR`: the encoder for people who do not have outmodal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome


@dataclass(frozen=True)
class ExportArgs:
    """Export a run's encoder; plain transformers.AutoModel loads it."""

    run: Path
    """Folder of the run."""
    to: Path
    """New folder to write."""
    modality: str = ""
    """Which encoder, where the run trained several."""
    force: bool = False
    """Replace an existing folder."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = list(argv)
    if args and not args[0].startswith("-"):
        args = ["--run", *args]
    parsed = parse(
        ExportArgs, args, prog="outmodal export", example="outmodal export runs/cox --to my-encoder"
    )
    folder = export(parsed.run, parsed.to, parsed.modality or None, parsed.force)
    return Outcome({"export": str(folder)}, f"wrote {folder}")


def export(run_folder: Path, to: Path, modality: str | None, force: bool) -> Path:
    """Export an encoder of a run on disk, with a card made from its configuration."""
    from outmodal.launch.card import card_for
    from outmodal.launch.running import open_run
    from outmodal.train.exporting import export_run

    if to.exists() and not force:
        raise UserError(f"{to} exists: choose another --to, or give --force True to replace it")
    config, plan = open_run(run_folder)
    card = card_for(config, plan.out)
    return export_run(plan, to.absolute(), card, modality=modality, force=force)
