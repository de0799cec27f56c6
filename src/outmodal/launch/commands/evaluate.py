"""`outmodal eval`: the method's own metrics, an export's classifier, or perceptors alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.train.evaluation import Evaluation

_OF_A_RUN = "outmodal eval runs/cox --data DATASET"
_OF_PERCEPTORS = "outmodal eval --perceptor image=CLIP --data DATASET --task classify"


@dataclass(frozen=True)
class EvalArgs:
    """Evaluate a run or an export (accuracy of the classifier, or alignment where that is what
    the run trained), or perceptors alone: zero-shot classification by class names, or retrieval
    between two modalities."""

    what: Path | None = None
    """Folder of a run or of an export; none where perceptors are named."""
    data: str = ""
    """Data set; a run's own where empty."""
    split: str = ""
    """Split; the run's evaluation split where empty, "test" for an export and for perceptors."""
    task: Literal["classify", "retrieve"] = "classify"
    """Retrieval is of perceptors only."""
    perceptor: tuple[str, ...] = ()
    """As in `outmodal embed`. classify: the modality's, and a second one for the prompts unless
    the first has a text side; retrieve: one for each of two modalities."""
    template: tuple[str, ...] = ()
    """What class names are put into, as "a photo of a {}."; averaged. A set for the kind of
    modality where none is given."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the perceptors."""
    compile: bool = False
    """Whether perceptors go through torch.compile."""
    batch: int = 256
    """Samples that perceptors encode together."""
    workers: int = 0
    """Processes that read for perceptors."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = list(argv)
    if args and not args[0].startswith("-"):
        args = ["--what", *args]
    example = f"{_OF_A_RUN}\n         {_OF_PERCEPTORS}"
    parsed = parse(EvalArgs, args, prog="outmodal eval", example=example)
    result = _of_perceptors(parsed) if parsed.perceptor else _of_a_folder(parsed)
    lines = [f"{name:<28} {value:.4f}" for name, value in sorted(result.metrics.items())]
    lines += [f"  {name:<26} {value:.4f}" for name, value in result.per_class.items()]
    data = {"metrics": result.metrics, "per_class": result.per_class, "samples": result.samples}
    return Outcome(data, "\n".join(lines))


def _of_a_folder(args: EvalArgs) -> Evaluation:
    from outmodal.launch.running import open_run
    from outmodal.train.evaluation import evaluate_export, evaluate_run

    if args.what is None:
        raise UserError(f"name a run, an export, or --perceptor ({_OF_A_RUN})")
    if args.task != "classify" or args.template:
        raise UserError(
            "--task and --template are for perceptors; a run is evaluated as it was trained: "
            f"leave them out ({_OF_A_RUN})"
        )
    if (args.what / "outmodal.json").is_file():
        if not args.data:
            raise UserError(f"--data is missing: an export holds no data ({_OF_A_RUN})")
        return evaluate_export(args.what, args.data, args.split or "test")
    return evaluate_run(open_run(args.what)[1], args.data, args.split)


def _of_perceptors(args: EvalArgs) -> Evaluation:
    import torch

    from outmodal.data.manifest import open_dataset
    from outmodal.launch.commands.embed import perceptor_config
    from outmodal.train.perceptor_evaluation import classify, retrieve

    if args.what is not None:
        raise UserError(f"name either {args.what} or --perceptor, not both")
    if not args.data:
        raise UserError(f"--data is missing ({_OF_PERCEPTORS})")
    if args.template and args.task != "classify":
        raise UserError("--template is for --task classify: leave it out")
    changes = {"precision": args.precision, "compile": args.compile}
    configs = [perceptor_config(text).model_copy(update=changes) for text in args.perceptor]
    dataset, split = open_dataset(args.data), args.split or "test"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.task == "retrieve":
        return retrieve(
            dataset, configs, split=split, batch=args.batch, workers=args.workers, device=device
        )
    return classify(
        dataset,
        configs,
        split=split,
        templates=args.template,
        batch=args.batch,
        workers=args.workers,
        device=device,
    )
