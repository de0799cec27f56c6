"""`outmodal export RUN --to DIR`: the encoder for people who do not have outmodal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.models.graph import GraphKind

_EXAMPLES = (
    "outmodal export runs/cox --to my-encoder",
    "outmodal export runs/align --modality image --to image-encoder --onnx --torch-export",
)
_SWITCHES = ("onnx", "torch_export", "force")


@dataclass(frozen=True)
class ExportArgs:
    """Export a run's encoder; plain transformers.AutoModel loads it.

    Switches (--onnx, --torch-export, --force, --no-ema) need no value.
    """

    run: Path
    """Folder of the run."""
    to: Path
    """New folder to write."""
    modality: str = ""
    """Which encoder, where the run trained several."""
    onnx: bool = False
    """Write model.onnx as well, checked with ONNX Runtime (pip install 'outmodal[onnx]')."""
    torch_export: bool = False
    """Write model.pt2 as well, a torch.export program that loads with torch alone."""
    ema: bool = True
    """Take the averaged weights where the run kept them (engine.ema); --no-ema takes the last."""
    force: bool = False
    """Replace an existing export."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = switched(argv)
    if args and not args[0].startswith("-"):
        args = ["--run", *args]
    example = "\n         ".join(_EXAMPLES)
    parsed = parse(ExportArgs, args, prog="outmodal export", example=example)
    folder = export(parsed)
    return Outcome(
        {"export": str(folder), "files": sorted(file.name for file in folder.iterdir())},
        f"wrote {folder}",
    )


def switched(argv: Sequence[str]) -> list[str]:
    """Give switches without a value theirs: `--onnx` is `--onnx True`, `--no-ema` `--ema False`."""
    args: list[str] = []
    for arg, following in zip(argv, [*argv[1:], ""][: len(argv)], strict=True):
        name = arg.removeprefix("--").replace("-", "_") if arg.startswith("--") else ""
        if name == "no_ema":
            args += ["--ema", "False"]
        elif name in _SWITCHES and following not in ("True", "False"):
            args += [arg, "True"]
        else:
            args.append(arg)
    return args


def export(args: ExportArgs) -> Path:
    """Export an encoder of a run on disk, with a card made from its configuration."""
    from outmodal.launch.card import card_for
    from outmodal.launch.running import open_run
    from outmodal.models.export_place import clear_leftovers
    from outmodal.models.graph_onnx import require_onnx
    from outmodal.train.exporting import export_run

    to = args.to.absolute()
    clear_leftovers(to)
    if to.exists() and not args.force:
        raise UserError(f"{to} exists: choose another --to, or give --force to replace it")
    if args.onnx:
        require_onnx()
    config, plan = open_run(args.run)
    wanted: dict[GraphKind, bool] = {"onnx": args.onnx, "torch": args.torch_export}
    return export_run(
        plan,
        to,
        card_for(config, plan.out, ema=args.ema),
        modality=args.modality or None,
        ema=args.ema,
        graphs=[kind for kind, asked in wanted.items() if asked],
        force=args.force,
    )
