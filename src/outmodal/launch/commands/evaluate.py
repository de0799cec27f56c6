"""`outmodal eval`: a run by its method or by what its frozen encoders tell, an export's
classifier, or perceptors alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome
from outmodal.train.combinations import Missing, Which
from outmodal.train.encoder_tasks import POOL, Directions
from outmodal.train.probing import ProbeConfig

if TYPE_CHECKING:
    from outmodal.train.evaluation import Evaluation

_OF_A_RUN = "outmodal eval runs/cox --data DATASET"
_OF_ENCODERS = "outmodal eval runs/align --task combinations --probe.epochs 20"
_OF_PERCEPTORS = "outmodal eval --perceptor image=CLIP --data DATASET --task classify"


@dataclass(frozen=True)
class EvalArgs:
    """Evaluate a run or an export (accuracy of the classifier, or alignment where that is what
    the run trained); the frozen encoders of a run (probe, combinations, retrieve); or perceptors
    alone: zero-shot classification by class names, or retrieval between two modalities."""

    what: Path | None = None
    """Folder of a run or of an export; none where perceptors are named."""
    data: str = ""
    """Data set; a run's own where empty."""
    split: str = ""
    """Split; the run's evaluation split where empty, "test" for an export and for perceptors."""
    task: Literal["classify", "retrieve", "probe", "combinations"] = "classify"
    """probe: a small network on the representations of all modalities; combinations: one for each
    combination of modalities; both are of a run only."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The network of probe and combinations; it learns on the run's training split."""
    subsets: Which = "all"
    """combinations: every one, or single modalities and all of them."""
    missing: Missing = "separate"
    """combinations: a network for each; or one of all modalities, with the others filled."""
    directions: Directions = "rest"
    """retrieve: all other modalities together ask for each one, or each asks for each other."""
    query: tuple[str, ...] = ()
    """retrieve: modalities that ask, where it is these only; wants --target."""
    target: str = ""
    """retrieve: the modality that --query looks for."""
    pool: int = POOL
    """retrieve: also among so many candidates a query; 0 leaves it out."""
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
    example = "\n         ".join([_OF_A_RUN, _OF_ENCODERS, _OF_PERCEPTORS])
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
    if args.template:
        raise UserError(f"--template is for perceptors: leave it out ({_OF_A_RUN})")
    if args.task != "classify":
        return _of_encoders(args)
    if (args.what / "outmodal.json").is_file():
        if not args.data:
            raise UserError(f"--data is missing: an export holds no data ({_OF_A_RUN})")
        return evaluate_export(args.what, args.data, args.split or "test")
    return evaluate_run(open_run(args.what)[1], args.data, args.split)


def _of_encoders(args: EvalArgs) -> Evaluation:
    from outmodal.launch.running import open_run
    from outmodal.train.encoder_tasks import combinations_task, probe_task, retrieve_task
    from outmodal.train.representations import open_encoder

    assert args.what is not None
    if (args.what / "outmodal.json").is_file():
        raise UserError(
            f"--task {args.task} is of a run, and {args.what} is an export: name the run's folder"
        )
    plan = open_run(args.what)[1]
    train, test = plan.data.train_split, args.split or plan.data.eval_split
    with open_encoder(plan, args.data) as encoder:
        if args.task == "probe":
            return probe_task(encoder, train, test, args.probe)
        if args.task == "combinations":
            which, missing = args.subsets, args.missing
            return combinations_task(encoder, train, test, args.probe, which=which, missing=missing)
        return retrieve_task(
            encoder,
            test,
            directions=args.directions,
            query=args.query,
            target=args.target,
            pool=args.pool,
        )


def _of_perceptors(args: EvalArgs) -> Evaluation:
    import torch

    from outmodal.data.manifest import open_dataset
    from outmodal.launch.commands.embed import perceptor_config
    from outmodal.train.perceptor_evaluation import classify, retrieve

    if args.what is not None:
        raise UserError(f"name either {args.what} or --perceptor, not both")
    if not args.data:
        raise UserError(f"--data is missing ({_OF_PERCEPTORS})")
    if args.task in ("probe", "combinations"):
        raise UserError(f"--task {args.task} is of a run: name its folder ({_OF_ENCODERS})")
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
