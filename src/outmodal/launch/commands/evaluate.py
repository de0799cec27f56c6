"""`outmodal eval RUN_OR_EXPORT`: the method's own metrics, or an export's classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome


@dataclass(frozen=True)
class EvalArgs:
    """Evaluate a run or an export: accuracy of the classifier, or alignment where that is what
    the run trained."""

    what: Path
    """Folder of a run or of an export."""
    data: str = ""
    """Data set; a run's own where empty."""
    split: str = ""
    """Split; the run's evaluation split where empty, "test" for an export."""
    task: Literal["classify"] = "classify"


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = list(argv)
    if args and not args[0].startswith("-"):
        args = ["--what", *args]
    example = "outmodal eval runs/cox --data DATASET"
    parsed = parse(EvalArgs, args, prog="outmodal eval", example=example)
    from outmodal.launch.running import open_run
    from outmodal.train.evaluation import evaluate_export, evaluate_run

    if (parsed.what / "outmodal.json").is_file():
        if not parsed.data:
            raise UserError(f"--data is missing: an export holds no data ({example})")
        result = evaluate_export(parsed.what, parsed.data, parsed.split or "test")
    else:
        result = evaluate_run(open_run(parsed.what)[1], parsed.data, parsed.split)
    lines = [f"{name:<28} {value:.4f}" for name, value in sorted(result.metrics.items())]
    lines += [f"  {name:<26} {value:.4f}" for name, value in result.per_class.items()]
    data = {"metrics": result.metrics, "per_class": result.per_class, "samples": result.samples}
    return Outcome(data, "\n".join(lines))
