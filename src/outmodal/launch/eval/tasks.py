"""The table of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from outmodal.launch.arguments import progress_bar
from outmodal.launch.eval.arguments import EvalArgs
from outmodal.launch.eval.targets import CELLS, Target
from outmodal.train import gather
from outmodal.train.classifying import classify_run, classify_task
from outmodal.train.corruption_task import corruption_task
from outmodal.train.encoder_tasks import (
    combinations_task,
    knn_task,
    probe_task,
    retrieve_task,
)
from outmodal.train.intervals import Bootstrap
from outmodal.train.latents_task import latents_task
from outmodal.train.missing import missing_task
from outmodal.train.published import published_task
from outmodal.train.results import Evaluation
from outmodal.train.run import RunPlan

Act = Callable[[Target, EvalArgs, Bootstrap], Evaluation]
Report = Callable[[int, int], None]


def evaluate(target: Target, args: EvalArgs) -> Evaluation:
    """Run the task that the arguments name."""
    bootstrap = Bootstrap(args.draws, args.seed)
    found = TASKS[args.task](target, args, bootstrap)
    return found.with_settings(draws=args.draws, bootstrap_seed=args.seed)


def _classify(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    if target.run is None:
        return classify_task(target.encoder, target.split, bootstrap)
    return classify_run(target.encoder, target.train, target.split, bootstrap)


def _probe(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    return probe_task(target.encoder, target.train, target.split, args.probe, bootstrap)


def _knn(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    predict = args.probe.predict
    return knn_task(target.encoder, target.train, target.split, args.knn, predict, bootstrap)


def _combinations(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    with _reported("combinations") as report:
        return combinations_task(
            target.encoder,
            target.train,
            target.split,
            args.probe,
            which=args.subsets,
            missing=args.missing,
            progress=report,
            bootstrap=bootstrap,
        )


def _retrieve(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    return retrieve_task(
        target.encoder,
        target.split,
        directions=args.directions,
        query=args.query,
        target=args.target,
        pool=args.pool,
        seed=args.seed,
        most=args.most,
        bootstrap=bootstrap,
    )


def _missing(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    return missing_task(
        target.encoder,
        target.train,
        target.split,
        args.probe,
        judge=args.judge,
        rates=args.rates,
        seed=args.seed,
        bootstrap=bootstrap,
    )


def _corruptions(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    with _reported("corruptions") as report:
        if target.split == CELLS:
            return published_task(
                target.encoder,
                names=args.corruptions,
                severities=args.severities,
                most=args.most,
                bootstrap=bootstrap,
                progress=report,
            )
        return corruption_task(
            target.encoder,
            target.train,
            target.split,
            args.probe,
            modality=args.modality,
            names=args.corruptions,
            severities=args.severities,
            judge=args.judge,
            seed=args.seed,
            most=args.most,
            bootstrap=bootstrap,
            progress=report,
        )


def _latents(target: Target, args: EvalArgs, bootstrap: Bootstrap) -> Evaluation:
    against, proxy = (_plan(name) for name in (args.against, args.proxy))
    board = target.run / "tensorboard" if target.run and gather.is_main() else None
    return latents_task(target.encoder, target.split, against, proxy, bootstrap, board)


def _plan(run: str) -> RunPlan | None:
    from outmodal.launch.running import open_run

    return open_run(Path(run))[1] if run else None


TASKS: Mapping[str, Act] = {
    "classify": _classify,
    "probe": _probe,
    "knn": _knn,
    "combinations": _combinations,
    "retrieve": _retrieve,
    "missing": _missing,
    "corruptions": _corruptions,
    "latents": _latents,
}


@contextmanager
def _reported(what: str) -> Iterator[Report]:
    """A bar on the main process."""
    if not gather.is_main():
        yield lambda done, total: None
        return
    with progress_bar(0, what, "") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            bar.refresh()

        yield report
