"""`outmodal quickstart`: the whole flow on the embedded data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome


@dataclass(frozen=True)
class QuickstartArgs:
    """Shards, perceptors, a COX learner against ERM, an export, and a reload without outmodal."""

    out: Path = Path("runs/quickstart")
    """Folder for everything that is made; repeat the command to go on or to look again."""
    seed: int = 0


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = parse(
        QuickstartArgs, argv, prog="outmodal quickstart", example="outmodal quickstart --out demo"
    )
    from outmodal.launch.quickstart import quickstart, summary

    result = quickstart(args.out.absolute(), args.seed)
    return Outcome(result, summary(result))
