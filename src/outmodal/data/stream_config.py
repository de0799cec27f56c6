"""The `data:` section of a run's configuration, and what follows from it and the data's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from outmodal.base import Config
from outmodal.data.manifest import EMBEDDED, Dataset
from outmodal.data.mixture_config import SourceConfig, check_mix
from outmodal.data.plan import check_batch, check_readers, choose_streams
from outmodal.data.store_config import RemoteConfig
from outmodal.errors import UserError


class StreamConfig(Config):
    """The `data:` section of a run's configuration.

    Attributes:
        path: Data set: a folder, an address, or the name of the embedded one.
        mix: Several data sets instead of one, see `mixture`; `path` is left out then.
        temperature: T of a mixture without proportions: a data set of n samples is drawn in
            proportion to n ** (1 / T). Above 1, small ones come up more often.
        train_split, eval_split: Names of the splits.
        batch: Global batch: samples per step of each stream over all ranks.
        streams: Virtual streams that the data are cut into; 0 chooses. Batches depend on it, so a
            run records the number.
        window: Samples of one stream that are shuffled together.
        workers: Reading processes per rank; 0 reads in the training process, beside the training.
        threads: Threads of each reading process that decode; 0 shares the cores out, and reads
            without threads what is cheap to decode. Batches do not depend on it.
        cache_mb: Memory for read samples, in each reading process.
        max_skips: Corrupt samples that a run tolerates, in each rank and each data set of a
            mixture; one more stops it.
        remote: How data sets with an address are read.
    """

    path: str = EMBEDDED
    mix: tuple[SourceConfig, ...] = ()
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    train_split: str = "train"
    eval_split: str = "test"
    batch: int = Field(default=128, ge=1)
    streams: int = Field(default=0, ge=0)
    window: int = Field(default=1024, ge=1)
    workers: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0)
    cache_mb: int = Field(default=512, ge=0)
    max_skips: int = Field(default=100, ge=0)
    remote: RemoteConfig = RemoteConfig()

    @model_validator(mode="before")
    @classmethod
    def _no_default_beside_a_mixture(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and values.get("mix")
            and values.get("path") in (None, EMBEDDED)
        ):
            return {**values, "path": ""}
        return values

    @model_validator(mode="after")
    def _one_data_set_or_a_mixture(self) -> StreamConfig:
        if self.mix and self.path:
            raise ValueError(
                f"path ({self.path}) and mix exclude each other: add the data set to mix, or leave "
                "one of them out (path: '' where a recipe's base names one)"
            )
        check_mix(self.mix, self.temperature)
        return self


def resolve_streams(cfg: StreamConfig, sizes: Sequence[int], batch: int, world: int) -> int:
    """Return the number of virtual streams: `cfg.streams`, or a choice where that is 0.

    The choice (`choose_streams`) follows from the samples in each shard of the training split,
    `sizes`, from the batch and from ranks and workers. A run records it as its `data.streams`, so
    that it goes on with the same batches on another number of ranks. UserError, with the nearest
    value that works, if nothing fits.
    """
    workers = max(1, cfg.workers)
    if cfg.streams == 0:
        return choose_streams(len(sizes), sum(sizes), batch, world, workers)
    check_readers(cfg.streams, world, workers)
    check_batch(batch, cfg.streams)
    return cfg.streams


def steps_per_epoch(dataset: Dataset, split: str, batch: int, streams: int) -> int:
    """Return the whole global batches in one pass over a split; UserError if there is none."""
    samples = dataset.split(split).samples
    steps = (samples // streams) // (batch // streams)
    if steps < 1:
        raise UserError(
            f"split '{split}' has {samples} samples, fewer than data.batch={batch}: "
            f"use data.batch={samples // streams * streams or samples} or less"
        )
    return steps
