"""What is planned: the recipe's real method, built on the CPU, and batches of any size for it.

The data set need not be at hand: `Described` stands in for one that will be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.epoch import EpochUse, epoch_use
from outmodal.data.inputs import TokenInput, VectorInput
from outmodal.data.manifest import Dataset, Manifest, Modality, ShardInfo, SplitInfo
from outmodal.data.opening import open_data
from outmodal.data.transform import Transform, Value
from outmodal.errors import UserError
from outmodal.launch.config import RunConfig
from outmodal.launch.plan.costs import Costs, at_rows, count, elements, nbytes, no_gradients
from outmodal.launch.plan.loading import assumed_rate, timed_rate
from outmodal.launch.running import run_plan
from outmodal.models.perceptors import load_perceptor
from outmodal.train.features import unmade
from outmodal.train.live import seen_through
from outmodal.train.methods import Method
from outmodal.train.methods.base import WholeBatchMethod
from outmodal.train.run import make_method, make_transforms

_FEW = (2, 4)
_MOST_LABELS = 50_000_000
_EXTENSIONS = {
    "image": "jpg",
    "audio": "flac",
    "video": "mp4",
    "text": "txt",
    "series": "npy",
    "vector": "npy",
}


@dataclass(frozen=True)
class Described:
    """A data set that is not at hand.

    Attributes:
        samples: Training samples.
        classes: Classes; 0 for none.
        sample_bytes: Mean bytes of a sample in its shard.
        vectors: Modality -> size, of features that perceptors will have made.
    """

    samples: int
    classes: int
    sample_bytes: float
    vectors: Mapping[str, int]


@dataclass(frozen=True)
class Facts:
    """What the estimate needs to know of the data.

    Attributes:
        samples: Training samples.
        sample_bytes: Mean bytes of a sample in its shard.
        steps_per_epoch: Optimizer steps of an epoch.
        use: Samples that it has, uses and drops.
    """

    samples: int
    sample_bytes: float
    steps_per_epoch: int
    use: EpochUse


class Subject:
    """A method and what feeds it.

    Args:
        config: The run.
        described: The data set, where it is not at hand.

    Raises:
        UserError: The recipe does not fit the data.
    """

    def __init__(self, config: RunConfig, described: Described | None = None) -> None:
        self.config = config
        dataset = _described(config, described) if described else open_data(config.data)
        self._few: list[tuple[int, Costs]] = []
        self.dataset, self._described = dataset, described is not None
        configs = [] if described else unmade(dataset, config.perceptors)
        self.perceptors = [load_perceptor(cfg, dataset) for cfg in configs]
        self.live = [p for p, cfg in zip(self.perceptors, configs, strict=True) if cfg.live]
        learned = [cfg.modality for cfg in config.learners]
        seen, _ = seen_through(dataset, self.perceptors, learned)
        with TemporaryDirectory() as folder:
            plan = run_plan(config, Path(folder))
            if described:
                plan = replace(plan, method=config.method.imagined(described.classes))
            self.transforms = (
                _unread(config, described) if described else make_transforms(plan, seen)
            )
            labels = _labels(config, dataset) if described else None
            self.method: Method = make_method(plan, seen, self.transforms, labels)
        if not self.method.steps_per_epoch():
            raise UserError(
                f"method '{config.method.name}' trains nothing, so there are no steps to plan: run "
                "it as it is"
            )
        split = dataset.split(config.data.train_split)
        stored = sum(shard.bytes for shard in split.shards)
        self.facts = Facts(
            split.samples,
            described.sample_bytes if described else stored / split.samples,
            max(1, self.method.steps_per_epoch()),
            epoch_use(
                dataset,
                config.data.train_split,
                config.data.batch,
                self.method.steps_per_epoch(),
            ),
        )

    @property
    def trainable(self) -> list[Tensor]:
        """Parameters that the optimizer moves."""
        return [p for p in self.method.parameters() if p.requires_grad]

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return elements(self.trainable)

    def frozen_bytes(self) -> int:
        """Bytes that never change on the device: frozen parameters, buffers, live perceptors."""
        held: list[Tensor] = [p for p in self.method.parameters() if not p.requires_grad]
        held += self.method.buffers()
        for perceptor in self.live:
            held += perceptor.tensors()
        return nbytes(held)

    def input_bytes(self, rows: int) -> int:
        """Bytes of one step's inputs of the stage that has most."""
        return rows * max(
            sum(nbytes(batch.x.values()) for batch in batches.values())
            for _, batches in self.batches(1)
        )

    def batches(self, rows: int) -> Iterator[tuple[str, dict[str, Batch]]]:
        """For each stage, a batch of `rows` random rows of each of its streams."""
        for stage in self.method.stages():
            specs = self.method.streams(stage.name)
            yield stage.name, {spec.name: self._batch(spec, rows) for spec in specs}

    def core_rate(self) -> tuple[float, bool]:
        """Samples a second that one core decodes, and whether that was timed on the data set."""
        if self._described:
            kinds = {m: s.kind for m, s in self.dataset.manifest.modalities.items()}
            return assumed_rate({m: kinds[m] for m in self.transforms if m in kinds}), False
        return timed_rate(self.dataset, self.config.data.train_split, self.transforms), True

    def step_costs(self, rows: int) -> Costs:
        """Costs of a forward and backward pass of `rows` rows, in the stage that needs most.

        Two small sizes are run and the rest extrapolated.
        """
        if not self._few:
            self._few = [(n, self._measured(n)) for n in _FEW]
        return at_rows(self._few[0], self._few[1], rows)

    def encoded_bytes(self, rows: int) -> int:
        """Bytes of the representations that objectives over the whole batch exchange."""
        if not isinstance(self.method, WholeBatchMethod):
            return 0
        with torch.no_grad():
            stage, batches = next(self.batches(4))
            encoded = self.method.encode(batches, stage, 0)
        return nbytes(t.float() for t in encoded.values()) * rows // 4

    def _measured(self, rows: int) -> Costs:
        precision = self.config.engine.precision
        self.method.train()
        found = []
        for stage, batches in self.batches(rows):
            held = [*self.method.parameters(), *self.method.buffers(), *_tensors(batches)]

            def forward(stage: str = stage, batches: Mapping[str, Batch] = batches) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    return self.method.forward(batches, stage, 0).loss.float()

            found.append(count(forward, held))
            no_gradients(self.method.parameters())
        return max(found, key=lambda costs: costs.peak)

    def _batch(self, spec: StreamSpec, rows: int) -> Batch:
        rows = rows * spec.batch // self.method.context.batch  # a stream may have more of them
        generator = torch.Generator().manual_seed(rows)
        looks = {m: m for m in spec.modalities} | {v.name: v.modality for v in spec.views}
        x = {look: _values(self.transforms[m], rows, generator) for look, m in looks.items()}
        classes = max(1, len(self.method.context.classes))
        there = torch.ones(rows, dtype=torch.bool)
        return Batch(
            index=torch.arange(rows) % self.facts.samples,
            label=torch.arange(rows) % classes,
            x=x,
            present=dict.fromkeys(looks, there),
            valid=there,
        )


def _values(transform: Transform, rows: int, generator: torch.Generator) -> Tensor:
    shape = (rows, *transform.shape)
    if transform.dtype.is_floating_point:
        return torch.randn(shape, generator=generator)
    return torch.ones(shape, dtype=transform.dtype)


def _tensors(batches: Mapping[str, Batch]) -> Iterator[Tensor]:
    for batch in batches.values():
        yield from (batch.index, batch.label, batch.valid)
        yield from batch.x.values()
        yield from batch.present.values()


def _described(config: RunConfig, described: Described) -> Dataset:
    """A manifest without shards on the disk, with what the learners read."""
    if described.samples < 1 or described.classes < 0:
        raise UserError("--samples must be at least 1 and --classes at least 0")
    specs = {
        name: Modality(kind="vector", ext="npy", shape=(n,))
        for name, n in described.vectors.items()
    }
    _check_perceptors(config, specs)
    for cfg in config.learners:
        kind = cfg.input.kinds[0]
        specs.setdefault(cfg.modality, Modality(kind=kind, ext=_EXTENSIONS[kind]))
    data = config.data
    manifest = Manifest(
        name="described",
        classes=tuple(f"class {i}" for i in range(described.classes)),
        modalities=specs,
        splits={s: _split(s, described) for s in (data.train_split, data.eval_split)},
    )
    return Dataset(Path("described"), manifest)


class _Unread(Transform):
    """Shape and type of an input whose data nobody reads."""

    def __call__(self, value: Value, key: str) -> Tensor:
        raise TypeError("a described data set has no values")


def _unread(config: RunConfig, described: Described) -> dict[str, Transform]:
    found: dict[str, Transform] = {
        name: _Unread(VectorInput(dim=n), (n,)) for name, n in described.vectors.items()
    }
    for cfg in config.learners:
        kind = torch.int64 if isinstance(cfg.input, TokenInput) else torch.float32
        found[cfg.modality] = _Unread(cfg.input, cfg.input.shape, kind)
    return found


def _check_perceptors(config: RunConfig, known: Mapping[str, Modality]) -> None:
    """Features of perceptors must be described too: their weights read no data here."""
    for cfg in config.perceptors:
        if cfg.live:
            raise UserError(
                f"the live perceptor of '{cfg.reads()}' cannot be planned on a described data set: "
                "leave --samples out and give --data.path, or leave its key `live` out"
            )
        if cfg.reads() not in known:
            raise UserError(
                f"--vectors is missing the size of what the perceptor of '{cfg.reads()}' makes: "
                f"add --vectors {cfg.reads()}=SIZE"
            )


def _split(name: str, described: Described) -> SplitInfo:
    """One shard that nobody reads."""
    file, count = f"{name}-000000.tar", described.samples
    shard = ShardInfo(file=file, samples=count, bytes=1, sha256="0" * 64)
    return SplitInfo(samples=count, shards=(shard,))


def _labels(config: RunConfig, dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    classes = len(dataset.manifest.classes)
    samples = dataset.split(config.data.train_split).samples
    if classes and samples <= _MOST_LABELS:
        train = np.arange(samples, dtype=np.int64) % classes
    else:  # methods over so many samples do not look at labels; a view takes no memory
        train = np.broadcast_to(np.int64(0 if classes else -1), (samples,))
    return {config.data.train_split: train, config.data.eval_split: train[: max(1, classes)]}
