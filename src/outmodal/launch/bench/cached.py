"""A training epoch over cached features against one over a live perceptor, in one process.

Both epochs read the same samples in the same order and take the same steps of the same learner;
the one encodes images at every step, the other reads the vectors that were made of them once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from outmodal.data.batch import StreamSpec
from outmodal.data.embedded import embedded_dataset
from outmodal.data.inputs import vector_input_for
from outmodal.data.manifest import Dataset, SplitInfo, open_dataset, write_manifest
from outmodal.data.perceptor_inputs import perceptor_input
from outmodal.data.shards import ShardWriter, read_shard
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.launch.bench.timing import in_turns, ratio
from outmodal.launch.bench.towers import DIM, Size, random_imagebind
from outmodal.launch.config import load_config
from outmodal.models.embed import embed_dataset
from outmodal.models.features import unit_norm
from outmodal.models.learners import build_learner
from outmodal.models.perceptors import FrozenPerceptor
from outmodal.models.perceptors.base import Precision

KNOWN, UNKNOWN = "image", "speech"
SPLIT = "train"


@dataclass(frozen=True)
class CachedEpoch:
    """Measured seconds for each sample of an epoch, and what they were measured on.

    Attributes:
        samples, batch: Of the epoch.
        parameters: Of the perceptor.
        learner_parameters: Of the learner.
        live, cached: Seconds for each sample, medians over epochs.
        encode_once: Seconds for each sample of making the features, once.
        speedup: live / cached.
        live_loss, cached_loss: Of the last epoch; they tell that both learn the same.
    """

    samples: int
    batch: int
    parameters: int
    learner_parameters: int
    live: float
    cached: float
    encode_once: float
    speedup: float
    live_loss: float
    cached_loss: float


def compare_epochs(
    folder: Path,
    size: Size,
    samples: int,
    batch: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
) -> CachedEpoch:
    """Measure both epochs in turns.

    Args:
        folder: Empty folder for the samples and their features.
        size: Of ImageBind's vision tower.
        samples: In an epoch, taken from the embedded data set; a multiple of `batch`.
        batch: Samples a step.
        rounds: Epochs of each kind that count, after one of each that does not.
        device, dtype: Of the perceptor; the learner is fp32.
    """
    dataset = _excerpt(folder / "samples", samples)
    perceptor, parameters = _perceptor(dataset, size, device, dtype)
    start = time.perf_counter()
    features = embed_dataset(dataset, [perceptor], [UNKNOWN], folder / "features", batch=batch)
    once = time.perf_counter() - start
    stored = vector_input_for(features.modality(KNOWN)).build(features, KNOWN, None)
    with (
        Epoch(dataset, perceptor.transform, batch, device, perceptor) as live,
        Epoch(features, stored, batch, device, None) as cached,
    ):
        live.run()
        cached.run()
        seconds = in_turns({"live": live.run, "cached": cached.run}, rounds, device)
        return CachedEpoch(
            samples=samples,
            batch=batch,
            parameters=parameters,
            learner_parameters=sum(p.numel() for p in live.learner.parameters()),
            live=median(seconds["live"]) / samples,
            cached=median(seconds["cached"]) / samples,
            encode_once=once / samples,
            speedup=ratio(seconds["live"], seconds["cached"]),
            live_loss=live.loss,
            cached_loss=cached.loss,
        )


class Epoch:
    """An epoch of learning speech against images: 1 - cosine of learner and perceptor."""

    def __init__(
        self,
        dataset: Dataset,
        known: Transform,
        batch: int,
        device: torch.device,
        perceptor: FrozenPerceptor | None,
    ) -> None:
        """`perceptor` encodes at every step; without it the data hold the vectors."""
        config = load_config("quickstart", []).learners[0]
        torch.manual_seed(0)
        self.learner = build_learner(config).to(device)
        self._projection = nn.Linear(self.learner.dim, DIM, device=device)
        weights = [*self.learner.parameters(), *self._projection.parameters()]
        self._optimizer = torch.optim.AdamW(weights, lr=1e-3)
        inputs = {KNOWN: known, UNKNOWN: config.input.build(dataset, UNKNOWN, None)}
        stream = StreamConfig(path=str(dataset.root), train_split=SPLIT, batch=batch)
        self._loader = Loader(dataset, inputs, stream)
        self._spec = StreamSpec("learn", SPLIT, (KNOWN, UNKNOWN), batch)
        self._steps = dataset.split(SPLIT).samples // batch
        self._device, self._perceptor = device, perceptor
        self.loss = 0.0

    def __enter__(self) -> Epoch:
        return self

    def __exit__(self, *error: object) -> None:
        self._loader.close()

    def run(self) -> None:
        """Take every step of the epoch, in the same order every time."""
        for batches in self._loader.open_epoch([self._spec], seed=0, epoch=0, steps=self._steps):
            batch = batches["learn"].to(self._device)
            target = self._target(batch.x[KNOWN])
            e = unit_norm(self._projection(self.learner(batch.x[UNKNOWN])))
            loss = 1 - (e * target).sum(dim=1).mean()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self.loss = float(loss.detach())

    def _target(self, x: Tensor) -> Tensor:
        return x if self._perceptor is None else self._perceptor.encode(x)


def _perceptor(
    dataset: Dataset, size: Size, device: torch.device, dtype: torch.dtype
) -> tuple[FrozenPerceptor, int]:
    tower = random_imagebind("vision", size, dtype, device)
    transform = perceptor_input("imagebind", "image").build(dataset, KNOWN, None)
    precision: Precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    identity = f"imagebind:vision@random-{size}"
    perceptor = FrozenPerceptor(KNOWN, identity, transform, tower, precision, dim=DIM)
    return perceptor.to(device), sum(p.numel() for p in tower.parameters())


def _excerpt(folder: Path, samples: int) -> Dataset:
    """The first samples of the embedded data set's first shard, as a data set."""
    source = embedded_dataset()
    first = source.split(SPLIT).shards[0]
    if samples > first.samples:
        raise UserError(f"an epoch has at most {first.samples} samples here, got {samples}")
    folder.mkdir(parents=True)
    with ShardWriter(folder / f"{SPLIT}-000000.tar") as shard:
        for _, key, members in read_shard(source.shard(first), stop=samples):
            shard.add(key, members)
    split = SplitInfo(samples=samples, shards=(shard.info,))
    manifest = source.manifest.model_copy(update={"splits": {SPLIT: split}})
    write_manifest(folder, manifest)
    return open_dataset(folder)
