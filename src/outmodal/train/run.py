"""A run from its plan to its result: data, features, learners, method, engine."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.labels import read_labels
from outmodal.data.manifest import Dataset
from outmodal.data.opening import open_data
from outmodal.data.plan import check_split
from outmodal.data.skips import SkipLedger, per_source, united
from outmodal.data.stream import Loader, StreamConfig, resolve_streams
from outmodal.data.transform import Transform
from outmodal.errors import UserError, nearest
from outmodal.models.learners import Learner, LearnerConfig, build_learner
from outmodal.models.perceptors import Perceptor, PerceptorConfig, load_perceptor
from outmodal.train import checkpoint, gather, rng
from outmodal.train.checkpoint import CheckpointStore
from outmodal.train.engine import Engine, EngineConfig
from outmodal.train.epochs import SourceCounts, announce
from outmodal.train.features import unmade, with_features
from outmodal.train.live import LiveFeed, seen_through
from outmodal.train.methods import Method, MethodSettings, build_method
from outmodal.train.methods.base import Context
from outmodal.train.methods.outside import OutsideSettings
from outmodal.train.optim import OptimConfig
from outmodal.train.runfolder import RunFolder, untouched_keys
from outmodal.train.signals import StopRequest
from outmodal.train.startcheck import check_alike, check_visible
from outmodal.train.together import on_main

_log = logging.getLogger(__name__)
_LOST = re.compile(
    r"Connection (reset|closed)|Broken pipe|Socket closed|remote process exited", re.I
)
_LATER = 5.0  # seconds by which ranks hear of a signal to all of them at different times


@dataclass(frozen=True)
class RunPlan:
    """Everything that decides a run.

    Attributes:
        out: The run's folder.
        config_text: The whole configuration as YAML; repeating it goes on with the run.
    """

    out: Path
    seed: int
    data: StreamConfig
    learners: Sequence[LearnerConfig]
    perceptors: Sequence[PerceptorConfig]
    method: MethodSettings
    optim: OptimConfig
    engine: EngineConfig
    config_text: str


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        out: The run's folder.
        metrics: The last evaluation.
        steps: Optimizer steps.
    """

    out: Path
    metrics: dict[str, float]
    steps: int


def train(plan: RunPlan) -> RunResult:
    """Run a plan to its end, or go on with it; a run that is done returns its result again.

    Raises:
        UserError: The plan does not fit the data or the run that is in the folder.
        StoppedEarly: A signal asked for it, after a complete checkpoint.
    """
    engine = plan.engine
    group = engine.strategy.startswith("zero")
    gather.open_world(engine.device, engine.timeout, group=group)
    folder = RunFolder(plan.out)
    with StopRequest(early=True) as stop, _losses_explained(stop):
        check_alike(plan.config_text)
        with folder.held(), _settled(engine.threads):
            check_visible(plan.out, plan.data)
            folder.start(plan.config_text, _untouched(plan), _code(plan))
            done = folder.result()
            if done is not None:
                return RunResult(plan.out, done["metrics"], done["step"])
            return _fit(plan, folder, stop)


@contextmanager
def _losses_explained(stop: StopRequest) -> Iterator[None]:
    """Say what a broken connection means: the library's own words name a port only.

    Before the first step it is waited for a moment whether this rank is asked to stop as well: a
    rank that heard it earlier has left already, and all are to end with 75.
    """
    try:
        yield
    except RuntimeError as error:
        if gather.world().size > 1 and _LOST.search(str(error)):
            if stop.early:
                time.sleep(_LATER)
            _log.error(
                "rank %d on %s lost another rank: it was killed, its node was lost, or its own log "
                "says why it ended. Run the same command again to go on from the newest checkpoint",
                gather.world().rank,
                socket.gethostname(),
            )
        raise


def _code(plan: RunPlan) -> bytes | None:
    """The code of a method from outside of the package."""
    return plan.method.source if isinstance(plan.method, OutsideSettings) else None


def _untouched(plan: RunPlan) -> set[str]:
    names = ("data", "learners", "perceptors", "method", "optim", "engine")
    return untouched_keys({name: getattr(plan, name) for name in names})


def _fit(plan: RunPlan, folder: RunFolder, stop: StopRequest) -> RunResult:
    """Make everything that a run needs, and run it."""
    rng.seed_everything(plan.seed)
    sources = _sources(plan, live=True)
    transforms = make_transforms(plan, sources.seen)
    data = _fixed_streams(plan, sources.seen)
    method = make_method(plan, sources.seen, transforms)
    inputs = {**transforms, **sources.inputs}
    world = gather.world()
    pin = world.device.type == "cuda"
    with Loader(sources.stored, inputs, data, rank=world.rank, world=world.size, pin=pin) as loader:
        feed = LiveFeed(_LoaderFeed(loader, plan.seed), sources.live)
        trainer = Engine(method, feed, plan.optim, plan.engine, folder, plan.seed, stop)
        trainer.counted = SourceCounts(sources.stored, data, plan.seed)
        announce(sources.stored, data, trainer.epoch_steps, inputs, method)
        trainer.recorder.gauges["data/skipped"] = lambda: loader.ledger.count
        stop.early = False
        try:
            metrics = trainer.fit()
            _tell_skips(loader.ledger, plan.out)
        finally:
            trainer.close()
    return RunResult(plan.out, metrics, trainer.at.step)


def _tell_skips(ledger: SkipLedger, out: Path) -> None:
    """Say which samples no rank could read, each once, and how many of each source."""
    records = united(gather.all_gather_objects(ledger.report()))
    if not records or not gather.is_main():
        return
    counts = per_source(records)
    checkpoint.write_json(
        out / "skipped.json", {"per_source": counts, "samples": [asdict(r) for r in records]}
    )
    named = ", ".join(f"{count} of '{source}'" for source, count in counts.items() if source)
    _log.warning(
        "%d corrupt samples were skipped%s: see %s",
        len(records),
        f" ({named})" if named else "",
        out / "skipped.json",
    )


def restore_method(
    plan: RunPlan, ema: bool = True
) -> tuple[Method, Mapping[str, Transform], Dataset]:
    """The method of a run with the weights of its newest readable checkpoint, on the CPU.

    Args:
        plan: The run.
        ema: Take the averaged weights where the run has them.

    Returns:
        The method in eval mode, the transforms by modality, and the data set it trained on.

    Raises:
        UserError: The run has no complete checkpoint.
    """
    path = CheckpointStore(plan.out / "checkpoints").newest()
    if path is None:
        raise UserError(f"run {plan.out} has no checkpoint yet: train it first")
    dataset = _sources(plan, live=False).stored
    transforms = make_transforms(plan, dataset)
    tensors = checkpoint.read(path, ("weights", "ema", "method")).tensors
    known = replace(plan, method=plan.method.restored(tensors["method"]))
    method = make_method(known, dataset, transforms)
    chosen = dict(tensors["weights"]) | (dict(tensors["ema"]) if ema else {})
    with torch.no_grad():
        for name, held in [*method.named_parameters(), *method.named_buffers()]:
            if name in chosen:
                held.copy_(chosen[name])
    method.load_method_state(tensors["method"])
    return method.eval(), transforms, dataset


class _LoaderFeed:
    """The engine's feed over a data set's loader."""

    def __init__(self, loader: Loader, seed: int) -> None:
        self._loader, self._seed = loader, seed

    def epoch(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        return self._loader.open_epoch(
            specs, seed=self._seed, epoch=epoch, start_step=start_step, steps=steps
        )

    def full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        return self._loader.open_pass(spec)

    def state(self) -> dict[str, Any]:
        return {"streams": self._loader.streams}


@dataclass(frozen=True)
class _Sources:
    """The stored data, what of it goes through perceptors in every batch, and how that looks.

    Attributes:
        stored: What the loader reads.
        seen: The same as the method sees it.
        live: Perceptors of every batch.
        inputs: Transforms of what they perceive.
    """

    stored: Dataset
    seen: Dataset
    live: dict[str, Perceptor]
    inputs: dict[str, Transform]


def _sources(plan: RunPlan, live: bool) -> _Sources:
    """Data and perceptors of a run; `live` False computes the features of live ones as well."""
    dataset = open_data(plan.data)
    configs = unmade(dataset, plan.perceptors)
    later = [load_perceptor(cfg, dataset) for cfg in configs if live and cfg.live]
    first = [cfg for cfg in configs if not (live and cfg.live)]
    learned = [cfg.modality for cfg in plan.learners]
    held = [name for name, spec in dataset.manifest.modalities.items() if spec.perceptor]
    stored = with_features(dataset, first, {*learned, *held, *(p.modality for p in later)})
    seen, inputs = seen_through(stored, later, learned)
    device = gather.world().device
    return _Sources(stored, seen, {p.modality: p.to(device) for p in later}, inputs)


def stored_data(plan: RunPlan) -> Dataset:
    """The data set of a run as its encoders read it, with what perceptors make of it."""
    return _sources(plan, live=False).stored


def make_transforms(plan: RunPlan, dataset: Dataset) -> dict[str, Transform]:
    """Inputs of the learners, and of every modality that is a vector."""
    from outmodal.data.inputs import vector_input_for

    names = [cfg.modality for cfg in plan.learners]
    if len(set(names)) < len(names):
        raise UserError(f"two learners for one modality in {names}: leave one of them out")
    _check_learned(plan, dataset)

    def build() -> dict[str, Transform]:
        return {c.modality: c.input.build(dataset, c.modality, plan.out) for c in plan.learners}

    on_main(lambda: build() and None)  # files that an input writes into the run folder
    transforms = build()
    for name, spec in dataset.manifest.modalities.items():
        if spec.kind == "vector" and name not in transforms:
            transforms[name] = vector_input_for(spec).build(dataset, name, plan.out)
    return transforms


def _check_learned(plan: RunPlan, dataset: Dataset) -> None:
    """Raise UserError where a learner's modality is not in the data set."""
    known = dataset.manifest.modalities
    for cfg in plan.learners:
        if cfg.modality not in known:
            raise UserError(
                f"learner for '{cfg.modality}': data set '{dataset.manifest.name}' has no such "
                f"modality{nearest(cfg.modality, known)}: leave it out of `learners`, or use a "
                "data set that has it"
            )


def _fixed_streams(plan: RunPlan, dataset: Dataset) -> StreamConfig:
    """The data section with the number of streams that the run began with."""
    data, size = plan.data, gather.world().size
    if data.batch % plan.engine.accumulate:
        raise UserError(
            f"engine.accumulate={plan.engine.accumulate} does not divide data.batch={data.batch}"
        )
    sizes = [shard.samples for shard in dataset.split(data.train_split).shards]
    piece = data.batch // plan.engine.accumulate
    path = plan.out / "streams.json"

    def choose() -> int:
        if path.is_file():
            return int(json.loads(path.read_text("utf-8"))["streams"])
        streams = resolve_streams(data, sizes, piece, size)
        checkpoint.write_json(path, {"streams": streams})
        return streams

    fixed = data.model_copy(update={"streams": on_main(choose)})
    resolve_streams(fixed, sizes, piece, size)
    check_split(data.train_split, sizes, fixed.streams, piece, size * max(1, data.workers))
    return fixed


def make_method(
    plan: RunPlan,
    dataset: Dataset,
    transforms: Mapping[str, Transform],
    labels: Mapping[str, NDArray[np.int64]] | None = None,
) -> Method:
    """The method of a run with new weights.

    Args:
        plan: The run.
        dataset: As the method sees it, with vectors in place of what perceptors perceive.
        transforms: By modality.
        labels: split -> [N] classes; None reads them from the shards.
    """
    rng.seed_everything(plan.seed)
    _check_learned(plan, dataset)
    learners: dict[str, Learner] = {}
    for cfg in plan.learners:
        resolved = cfg.model_copy(update={"input": transforms[cfg.modality].config})
        learners[cfg.modality] = build_learner(resolved)
        if plan.engine.activation_checkpointing:
            learners[cfg.modality].checkpoint_activations()
    data = plan.data
    context = Context(
        seed=plan.seed,
        batch=data.batch,
        classes=dataset.manifest.classes,
        labels=labels or {s: read_labels(dataset, s) for s in (data.train_split, data.eval_split)},
        dims={
            name: spec.shape[0]
            for name, spec in dataset.manifest.modalities.items()
            if spec.kind == "vector" and spec.shape
        },
        learners=learners,
        train_split=data.train_split,
        eval_split=data.eval_split,
        epochs=plan.engine.epochs,
        inputs=transforms,
        splits=tuple(dataset.manifest.splits),
    )
    return build_method(plan.method, context)


@contextmanager
def _settled(threads: int) -> Iterator[None]:
    """What decides the order of sums is fixed for a run: CPU threads, cuDNN's choices."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    before = torch.get_num_threads()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", gather.world().size))
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local))
    try:
        yield
    finally:
        torch.set_num_threads(before)
